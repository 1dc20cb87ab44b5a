/** A wall clock that a test sets under a running process, by libfaketime. The process's monotonic clocks go on as before. */

import { existsSync, readdirSync, renameSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'

/** Where Debian's package `libfaketime` has its library, whatever the machine is. `undefined` where it is not installed. */
export const FAKETIME = existsSync('/usr/lib')
  ? readdirSync('/usr/lib').map((folder) => join('/usr/lib', folder, 'faketime', 'libfaketime.so.1')).find(existsSync)
  : undefined

/** For tests that need it. */
export const withoutFaketime = FAKETIME === undefined && 'it needs libfaketime (the Debian package faketime), which is not on this machine'

export interface WallClock {
  /** What a process is started with whose wall clock this is. */
  readonly environment: Record<string, string>
  /** Sets it so many seconds fast, or slow. */
  step(seconds: number): void
}

/** @param lookEvery seconds between two looks at the file, which cost the process time; 0 looks whenever the clock is read */
export function wallClock(file: string, lookEvery: number): WallClock {
  const step = (seconds: number) => {
    // At once: who looks in between must not find half of it.
    writeFileSync(`${file}.next`, `${seconds < 0 ? '' : '+'}${seconds}`, { mode: 0o644 })
    renameSync(`${file}.next`, file)
  }
  step(0)
  const looks: Record<string, string> = lookEvery === 0 ? { FAKETIME_NO_CACHE: '1' } : { FAKETIME_CACHE_DURATION: String(lookEvery) }
  return { environment: FAKETIME === undefined ? {} : { LD_PRELOAD: FAKETIME, FAKETIME_TIMESTAMP_FILE: file, FAKETIME_DONT_FAKE_MONOTONIC: '1', ...looks }, step }
}
