/** A monotonic clock that a soak makes stand still under a running process, as it does in suspend. */

import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { pathToFileURL } from 'node:url'
import { PACKAGE_ROOT } from '../../src/package-root.js'

/** What Node.js is started with so that its monotonic clock can have stood still: see `suspend-clock.ts`. */
export function suspendable(file: string): string[] {
  writeFileSync(file, '0')
  return ['--import', pathToFileURL(join(PACKAGE_ROOT, 'dist', 'test', 'soak', 'suspend-clock.js')).href]
}
