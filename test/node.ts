/**
 * Runs tests on another version of Node.js: `npm run test:node -- 26 [file…]`, or `20.19.0`, or the oldest that is supported, `oldest`.
 * The program comes from npm, into a folder of its own that is removed afterwards.
 */

import { execFileSync, spawn } from 'node:child_process'
import { once } from 'node:events'
import { chmodSync, mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { delimiter, join } from 'node:path'
import { PACKAGE_ROOT } from '../src/package-root.js'

const [version = '', ...files] = process.argv.slice(2)
if (!/^\d+(\.\d+){0,2}$|^oldest$/.test(version)) {
  process.stderr.write('usage: npm run test:node -- 20.19.0|22|24|26|…|oldest [file…]\n')
  process.exit(2)
}

const folder = mkdtempSync(join(tmpdir(), 'mecha-keys-node-'))
// Root runs PostgreSQL's keeper as another user, with this program.
chmodSync(folder, 0o755)
try {
  const bin = install(version === 'oldest' ? oldest() : version)
  process.stdout.write(`Node.js: ${execFileSync(join(bin, 'node'), ['--version'], { encoding: 'utf8' })}`)
  const tests = spawn(join(bin, 'node'), [join(PACKAGE_ROOT, 'dist', 'test', 'run.js'), ...files], {
    stdio: 'inherit',
    env: { ...process.env, PATH: `${bin}${delimiter}${process.env['PATH']}` },
  })
  for (const signal of ['SIGINT', 'SIGTERM'] as const) process.on(signal, () => tests.kill(signal))
  const [code] = (await once(tests, 'exit')) as [number | null]
  process.exitCode = code ?? 1
} finally {
  rmSync(folder, { recursive: true, force: true })
}

/** Installs a version, or the newest that begins so, and returns the folder of its program. */
function install(wanted: string): string {
  const name = `node-${process.platform}-${process.arch}`
  execFileSync('npm', ['install', '--prefix', folder, '--no-save', '--no-audit', '--no-fund', '--loglevel', 'error', `${name}@${wanted}`], { stdio: 'inherit', timeout: 300_000 })
  return join(folder, 'node_modules', name, 'bin')
}

function oldest(): string {
  const { engines } = JSON.parse(readFileSync(join(PACKAGE_ROOT, 'package.json'), 'utf8')) as { engines: { node: string } }
  return engines.node.replace('>=', '')
}
