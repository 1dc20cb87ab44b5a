/**
 * Removes from folders what only developers read: `node prune.mjs <folder>...`.
 *
 * Of packages that is what their authors tell how they work and that they do: declarations, source maps, documentation, tests,
 * benchmarks. Licences stay. A folder counts as tests by its name alone, and only in a package's own folder.
 */

import { existsSync, readdirSync, rmSync } from 'node:fs'
import { join } from 'node:path'

const FILES = /\.(?:[cm]?ts|map|md|markdown|tsbuildinfo|flow)$|\.(?:test|spec)\.[cm]?js$|^(?:\.|tsconfig|eslint|package-lock)/
const LICENCES = /^(?:licen[cs]e|copying|notice)/i
const FOLDERS = new Set(['.github', '__tests__', 'benchmark', 'benchmarks', 'bench', 'doc', 'docs', 'example', 'examples', 'fixtures', 'test', 'tests'])

for (const folder of process.argv.slice(2)) prune(folder)

function prune(folder) {
  const isPackage = existsSync(join(folder, 'package.json'))
  for (const entry of readdirSync(folder, { withFileTypes: true })) {
    const path = join(folder, entry.name)
    if (entry.isDirectory() && isPackage && FOLDERS.has(entry.name)) rmSync(path, { recursive: true })
    else if (entry.isDirectory()) prune(path)
    else if (FILES.test(entry.name) && !LICENCES.test(entry.name)) rmSync(path)
  }
}
