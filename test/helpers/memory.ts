/** What is in the memory of another process: what a core dump of it would hold. */

import { closeSync, openSync, readFileSync, readSync } from 'node:fs'

/** Bytes read at once. Two reads overlap by more than the longest text that is looked for. */
const CHUNK = 32 * 1024 * 1024
const OVERLAP = 4096

/** Where a text stands in a process. */
export interface Place {
  readonly text: string
  readonly address: number
  /** Whether the C library's heap holds it, and not V8's. */
  readonly isNative: boolean
}

export const canReadMemory = process.platform === 'linux'

/**
 * Looks for texts in everything that a process can write to, while the process stands still. Linux alone shows the
 * memory of a child (proc(5), `/proc/pid/mem`).
 */
export function findInMemory(pid: number, texts: readonly string[]): Place[] {
  const wanted = texts.map((text) => ({ text, bytes: Buffer.from(text, 'latin1') }))
  const buffer = Buffer.alloc(CHUNK + OVERLAP)
  const found: Place[] = []
  process.kill(pid, 'SIGSTOP')
  const memory = openSync(`/proc/${pid}/mem`, 'r')
  try {
    for (const { start, end, isNative } of writableMappings(pid))
      for (let at = start; at < end; at += CHUNK) {
        const part = buffer.subarray(0, Math.min(buffer.length, end - at))
        if (!isReadable(() => readSync(memory, part, 0, part.length, at))) continue
        for (const { text, bytes } of wanted)
          for (let place = part.indexOf(bytes); place >= 0 && place < CHUNK; place = part.indexOf(bytes, place + 1))
            found.push({ text, address: at + place, isNative })
      }
  } finally {
    closeSync(memory)
    process.kill(pid, 'SIGCONT')
  }
  return found
}

function writableMappings(pid: number) {
  return readFileSync(`/proc/${pid}/maps`, 'utf8').split('\n').flatMap((line) => {
    const [, start, end, rights, name] = /^([0-9a-f]+)-([0-9a-f]+) (\S+) \S+ \S+ \S+ *(.*)$/.exec(line) ?? []
    if (!start || !rights!.startsWith('rw')) return []
    return [{ start: parseInt(start, 16), end: parseInt(end!, 16), isNative: name === '[heap]' }]
  })
}

/** Some mappings have pages that nobody can read. */
function isReadable(read: () => number): boolean {
  try {
    return read() > 0
  } catch {
    return false
  }
}
