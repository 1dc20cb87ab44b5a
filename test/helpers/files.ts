/** Test files, run in processes of their own, and in the end one line that says what came of them. Known to the runner alone. */

import { spawn, type ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, readdirSync, statSync } from 'node:fs'
import { availableParallelism } from 'node:os'
import { dirname, join, relative, resolve, sep } from 'node:path'
import { createInterface } from 'node:readline'
import { pathToFileURL } from 'node:url'
import { t } from 'tap'
import { ConfigError } from '../../src/errors.js'
import { PACKAGE_ROOT } from '../../src/package-root.js'

/** More files than cores: much of what a test does is to wait. */
const JOBS = availableParallelism() + 4
/** Longest that a file may take, on a machine that does ten other things: a bound, and no expectation. */
const TIMEOUT_MS = 600_000
/**
 * What tap puts into this variable of what it spawns counts each line that runs, for coverage, and has a thread of its own for each
 * module that is loaded: more than half of what a file costs. `env` gives it back as it was.
 */
const OPTIONS = `NODE_OPTIONS=${process.env['NODE_OPTIONS'] ?? ''}`
const TEST = '.test.ts'
/**
 * Folders whose tests mostly ask a service in their own process: some of their files run one after another in one process, for to load and
 * to warm up the service is most of what each would cost. They share the database of `emptyDatabase`, so that what one of them starts
 * outside of a test has a database of its own.
 */
const TOGETHER = [
  'test/control/audit', 'test/control/gateways', 'test/control/keys', 'test/control/operators', 'test/control/receipts', 'test/control/signing-keys', 'test/credentials', 'test/db',
  'test/runtime/authz', 'test/runtime/changes', 'test/runtime/gateway-auth', 'test/runtime/nonces', 'test/runtime/oauth', 'test/runtime/usage', 'test/runtime/verify', 'test/server',
]
const MOST_TOGETHER = 4
/** Folders of tests that wait for clusters, bounds and clocks: begun first, for the last file to end is waited for by nothing but itself. */
const BEGUN_FIRST = ['test/control/restore', 'test/runtime/changes', 'test/gateway-sdk']
const LONG = '.long.test.ts'

/**
 * The files that arguments name, relative to the package: by their sources, since what is left in `dist/` of a test that was
 * removed does not run. The largest come first, but for folders that are begun before.
 *
 * @throws ConfigError where an argument names no test
 */
export function testFiles(args: readonly string[]): string[] {
  const named = args.filter((arg) => arg !== '--long')
  if (named.length > 0) return [...new Set(named.flatMap(testsAt))]
  const isLong = args.includes('--long')
  return testsAt('test').filter((file) => file.endsWith(LONG) === isLong)
}

function testsAt(arg: string): string[] {
  const path = relative(PACKAGE_ROOT, resolve(PACKAGE_ROOT, arg))
  const found = !existsSync(path) ? [] : statSync(path).isFile() ? [path] : readdirSync(path, { recursive: true, encoding: 'utf8' }).map((file) => join(path, file))
  const tests = found.filter((file) => file.endsWith(TEST) && !file.includes(`${sep}node_modules${sep}`))
  if (tests.length === 0) throw new ConfigError(`${arg} is no test and has none: their names end in ${TEST}`)
  const isLater = (file: string) => Number(!BEGUN_FIRST.includes(dirname(file)))
  return tests.sort((a, b) => isLater(a) - isLater(b) || statSync(b).size - statSync(a).size)
}

/**
 * Runs test files, several at once, and writes what they say. Not by tap's own command: that one compiles its plugins first, and
 * loads three hooks into each file that are of use to coverage and to TypeScript alone.
 */
export async function runFiles(files: readonly string[], environment: Readonly<Record<string, string>>): Promise<boolean> {
  const running = new Set<ChildProcess>()
  for (const signal of ['SIGINT', 'SIGTERM'] as const)
    process.once(signal, () => {
      for (const child of running) child.kill('SIGKILL')
      process.exit(1)
    })
  const counts = { passed: 0, failed: 0, skipped: 0 }
  const count = (line: string) => {
    if (/^\s*(not )?ok .*# SKIP/i.test(line)) counts.skipped++
    else if (/^\s*ok /.test(line)) counts.passed++
    else if (/^\s*not ok /.test(line)) counts.failed++
  }
  /** Files that have said how many tests they have, which comes last, and those in which one failed. */
  const [over, red] = [new Set<string>(), new Set<string>()]
  t.on('spawn', (file) => file.on('process', (child: ChildProcess) => {
    running.add(child)
    child.once('exit', () => running.delete(child))
    createInterface(child.stdout!).on('line', (line) => {
      count(line)
      if (/^1\.\.\d/.test(line)) over.add(file.name)
      if (/^not ok /.test(line)) red.add(file.name)
    })
  }))
  const reader = show()
  t.setTimeout(0)
  t.jobs = JOBS
  const together = groupsOf(files)
  t.plan(together.length)
  const incomplete: string[] = []
  await Promise.all(together.map(async (group) => {
    const name = group.join(' ')
    const built = group.map((file) => join(PACKAGE_ROOT, 'dist', file.replace(/\.ts$/, '.js')))
    const last = built.pop()!
    const args = [OPTIONS, process.execPath, '--enable-source-maps', ...built.flatMap((file) => ['--import', pathToFileURL(file).href]), last]
    const results = await t.spawn('env', args, { at: null, stack: '', name, cwd: PACKAGE_ROOT, env: { ...process.env, ...environment, TAP_TIMEOUT: String(TIMEOUT_MS / 1000) }, buffered: true, timeout: TIMEOUT_MS })
    if (!results?.ok && !(over.has(name) && red.has(name))) incomplete.push(name)
  }))
  await reader
  const { passed, failed, skipped } = counts
  const missing = incomplete.length > 0 ? `; ${incomplete.length} of ${files.length} files did not load or end: ${incomplete.join(', ')}` : ''
  process.stdout.write(`\n${passed} passed, ${failed} failed, ${skipped} skipped${missing}\n`)
  return t.passing() && incomplete.length === 0
}

/** The files of each process, in the order of the first of each. */
function groupsOf(files: readonly string[]): string[][] {
  const groups: string[][] = []
  for (const file of files) {
    const isShort = TOGETHER.includes(dirname(file)) && !file.endsWith(LONG)
    const open = isShort && groups.find((group) => dirname(group[0]!) === dirname(file) && !group[0]!.endsWith(LONG) && group.length < MOST_TOGETHER)
    if (open) open.push(file)
    else groups.push([file])
  }
  return groups
}

/** To a person, what tap makes of it; raw to everything else. */
function show(): Promise<unknown> | undefined {
  if (!process.stdout.isTTY) return undefined
  const reader = spawn(process.execPath, [join(PACKAGE_ROOT, 'node_modules', 'tap', 'dist', 'esm', 'run.mjs'), 'run', '--disable-coverage', '-'], { cwd: PACKAGE_ROOT, stdio: ['pipe', 'inherit', 'inherit'] })
  t.pipe(reader.stdin)
  return once(reader, 'exit')
}
