import { existsSync, readFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'

/** The folder that holds package.json and, beside it, `migrations/` and `docs/`. */
export const PACKAGE_ROOT = ((folder) => {
  while (!existsSync(join(folder, 'package.json'))) folder = dirname(folder)
  return folder
})(dirname(fileURLToPath(import.meta.url)))

export const VERSION = (JSON.parse(readFileSync(join(PACKAGE_ROOT, 'package.json'), 'utf8')) as { version: string }).version
