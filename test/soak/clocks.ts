/** Clocks that a soak steps under running processes: wall clocks by libfaketime, and a monotonic one that stood still in suspend. */

import { existsSync, readdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { pathToFileURL } from 'node:url'
import { PACKAGE_ROOT } from '../../src/package-root.js'

/** Where Debian's package `libfaketime` has its library, whatever the machine is. `undefined` where it is not installed. */
export const FAKETIME = existsSync('/usr/lib')
  ? readdirSync('/usr/lib').map((folder) => join('/usr/lib', folder, 'faketime', 'libfaketime.so.1')).find(existsSync)
  : undefined

export interface WallClock {
  /** What a process is started with whose wall clock this is. */
  readonly environment: Record<string, string>
  /** Sets it so many seconds fast; it takes effect within a second. Monotonic clocks go on as before. */
  step(seconds: number): void
}

export function wallClock(file: string): WallClock {
  writeFileSync(file, '+0', { mode: 0o644 })
  return {
    environment: FAKETIME === undefined ? {} : { LD_PRELOAD: FAKETIME, FAKETIME_TIMESTAMP_FILE: file, FAKETIME_DONT_FAKE_MONOTONIC: '1', FAKETIME_CACHE_DURATION: '1' },
    step: (seconds) => writeFileSync(file, `${seconds < 0 ? '' : '+'}${seconds}`),
  }
}

/** What Node.js is started with so that its monotonic clock can have stood still: see `suspend-clock.ts`. */
export function suspendable(file: string): string[] {
  writeFileSync(file, '0')
  return ['--import', pathToFileURL(join(PACKAGE_ROOT, 'dist', 'test', 'soak', 'suspend-clock.js')).href]
}
