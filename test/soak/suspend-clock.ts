/**
 * Makes a process that was stopped look as if its machine had been suspended: `performance.now()` does not count the time
 * that the file SUSPENDED_MS names, as CLOCK_MONOTONIC of Linux does not. The wall clock goes on. Whoever stops a process
 * writes the file before it lets the process go on; the first look at the clock after a gap reads it.
 */

import { readFileSync } from 'node:fs'

const file = process.env['SUSPENDED_MS']!
const real = performance.now.bind(performance)
/** Shorter than any suspension, and longer than a busy process is without a look at the clock. */
const GAP_MS = 500

let lastReal = real()
let suspendedMs = 0

performance.now = () => {
  const at = real()
  if (at - lastReal > GAP_MS) suspendedMs = Number(readFileSync(file, 'utf8'))
  lastReal = at
  return at - suspendedMs
}
