/**
 * Runs the tests on a real PostgreSQL: the one that TEST_DATABASE_URL names (a superuser's URL), else a container
 * where a container runtime answers, else the embedded one. Arguments are files, all of them by default.
 */

import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { startEmbedded } from '../src/db/embedded.js'
import { migrate } from '../src/db/migrate.js'
import { ensureLogin } from '../src/db/logins.js'
import { openDatabase } from '../src/db/pool.js'
import { PACKAGE_ROOT } from '../src/package-root.js'
import { LOGINS, openAdmin, urlFor } from './helpers/server.js'

/** Nothing that a test writes has to outlive it. */
const FAST = ['fsync=off', 'synchronous_commit=off', 'full_page_writes=off', 'max_connections=300']
const RESULTS = join(PACKAGE_ROOT, '.tap', 'test-results')

const server = await startPostgres()
process.stdout.write(`PostgreSQL: ${server.what}\n`)
const template = `mecha_keys_template_${process.pid}`
let exitCode: number
try {
  await makeTemplate()
  exitCode = await runTap()
  summarise()
} finally {
  await admin(`DROP DATABASE IF EXISTS ${template}`)
  await server.stop()
}
process.exit(exitCode)

async function startPostgres(): Promise<{ url: string; what: string; stop: () => Promise<void> }> {
  const given = process.env['TEST_DATABASE_URL']
  if (given) return { url: given, what: 'TEST_DATABASE_URL', stop: async () => {} }
  return (await startContainer()) ?? startEmbeddedForTests()
}

async function startContainer() {
  const { getContainerRuntimeClient } = await import('testcontainers')
  const answers = await getContainerRuntimeClient().then(() => true, () => false)
  if (!answers) return undefined
  const { PostgreSqlContainer } = await import('@testcontainers/postgresql')
  const container = await new PostgreSqlContainer('postgres:18').withCommand(['postgres', ...FAST.flatMap((flag) => ['-c', flag])]).start()
  return { url: container.getConnectionUri(), what: 'a container', stop: async () => void (await container.stop()) }
}

async function startEmbeddedForTests() {
  const dataDir = mkdtempSync(join(tmpdir(), 'mecha-keys-test-'))
  const database = await startEmbedded({ dataDir, flags: FAST })
  const stop = async () => {
    await database.stop()
    rmSync(dataDir, { recursive: true, force: true })
  }
  return { url: database.urls.owner, what: 'embedded', stop }
}

async function makeTemplate(): Promise<void> {
  await admin(`CREATE DATABASE ${template}`)
  const db = openDatabase({ url: urlFor(server.url, template), size: 1, timeoutMs: 60_000, name: 'tests' })
  await migrate(db)
  for (const plane of ['control', 'runtime'] as const) await ensureLogin(db, plane, urlFor(server.url, template, LOGINS[plane]), 30_000)
  await db.destroy()
}

async function admin(statement: string): Promise<void> {
  const pool = openAdmin(server.url)
  await pool.query(statement)
  await pool.end()
}

async function runTap(): Promise<number> {
  rmSync(RESULTS, { recursive: true, force: true })
  const asked = process.argv.slice(2)
  const files = (asked.length > 0 ? asked : testFiles()).map((file) => join('dist', file.replace(/\.ts$/, '.js')))
  const tap = spawn(process.execPath, [join(PACKAGE_ROOT, 'node_modules', 'tap', 'dist', 'esm', 'run.mjs'), ...files], {
    cwd: PACKAGE_ROOT,
    stdio: 'inherit',
    env: { ...process.env, TEST_SERVER_URL: server.url, TEST_TEMPLATE: template },
  })
  for (const signal of ['SIGINT', 'SIGTERM'] as const) process.on(signal, () => tap.kill(signal))
  const [code] = (await once(tap, 'exit')) as [number | null]
  return code ?? 1
}

/** By their sources: what is left in `dist/` of a test that was removed does not run. */
function testFiles(): string[] {
  return readdirSync(join(PACKAGE_ROOT, 'test'), { recursive: true, encoding: 'utf8' })
    .filter((file) => file.endsWith('.test.ts'))
    .sort()
    .map((file) => join('test', file))
}

/** One line that says how many tests ran, from tap's own results. */
function summarise(): void {
  if (!existsSync(RESULTS)) return
  const results = readdirSync(RESULTS, { recursive: true, encoding: 'utf8' }).filter((file) => file.endsWith('.tap'))
  const lines = results.flatMap((file) => readFileSync(join(RESULTS, file), 'utf8').split('\n')).map((line) => line.trim())
  const count = (pattern: RegExp) => lines.filter((line) => pattern.test(line)).length
  const skipped = count(/^(not )?ok .*# SKIP/i)
  process.stdout.write(`\n${count(/^ok /) - skipped} passed, ${count(/^not ok /)} failed, ${skipped} skipped\n`)
}
