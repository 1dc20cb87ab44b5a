/**
 * Removes from folders what only developers read: `node prune.mjs <folder>...`.
 *
 * Of packages that is what their authors tell how they work and that they do: declarations, source maps, documentation, tests,
 * benchmarks. Licences stay. A folder counts as tests by its name alone, and only in a package's own folder. OpenTelemetry's packages hold
 * their code three times: in `build/src` for Node.js, and twice for those who bundle it.
 */

import { existsSync, readdirSync, rmSync } from 'node:fs'
import { join } from 'node:path'

const FILES = /\.(?:[cm]?ts|map|md|markdown|tsbuildinfo|flow)$|\.(?:test|spec)\.[cm]?js$|^(?:\.|tsconfig|eslint|package-lock)/
const LICENCES = /^(?:licen[cs]e|copying|notice)/i
const FOLDERS = new Set(['.github', '__tests__', 'benchmark', 'benchmarks', 'bench', 'doc', 'docs', 'example', 'examples', 'fixtures', 'test', 'tests'])

const FOR_BUNDLERS = ['esm', 'esnext']

for (const folder of process.argv.slice(2)) prune(folder)

function prune(folder) {
  const isPackage = existsSync(join(folder, 'package.json'))
  if (isPackage && existsSync(join(folder, 'build', 'src'))) for (const name of FOR_BUNDLERS) rmSync(join(folder, 'build', name), { recursive: true, force: true })
  for (const entry of readdirSync(folder, { withFileTypes: true })) {
    const path = join(folder, entry.name)
    if (entry.isDirectory() && isPackage && FOLDERS.has(entry.name)) rmSync(path, { recursive: true })
    else if (entry.isDirectory()) prune(path)
    else if (FILES.test(entry.name) && !LICENCES.test(entry.name)) rmSync(path)
  }
}
