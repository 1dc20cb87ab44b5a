/** PostgreSQL servers of a test's own, with data that survives them, and copies that are promoted. */

import { execFileSync } from 'node:child_process'
import { appendFileSync, existsSync, mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { sql } from 'kysely'
import type { Test } from 'tap'
import { startEmbedded, type EmbeddedDatabase } from '../../src/db/embedded/embedded.js'
import { ensureLogin } from '../../src/db/logins.js'
import { migrate } from '../../src/db/migrate.js'
import { openDatabase } from '../../src/db/pool.js'
import type { TestDatabase } from './database.js'
import { eventually } from './eventually.js'
import { dataFolder } from './server.js'

/** Longest wait for a server that another test file makes: a bound, and no expectation. */
const PATIENCE_MS = 120_000

/** A PostgreSQL of the test's own, migrated, with the planes' logins: what is in a folder, or a copy of the one that all tests begin with. */
export async function startDatabase(t: Test, folder: string, flags: readonly string[] = []): Promise<{ embedded: EmbeddedDatabase; database: TestDatabase }> {
  if (!existsSync(join(folder, 'postgres'))) copy(await migratedServer(), folder)
  const embedded = await startEmbedded({ dataDir: folder, flags: ['fsync=off', ...flags] })
  const { owner, control, runtime } = embedded.urls
  const db = openDatabase({ url: owner, size: 2, timeoutMs: 10_000, name: 'test owner' })
  t.teardown(async () => {
    await db.destroy()
    await embedded.stop()
  })
  return { embedded, database: { owner, db, control, runtime } }
}

/** The folder of a server that is migrated and stopped. The first test file that asks for it makes it, and the others wait for that. */
async function migratedServer(): Promise<string> {
  const folder = join(process.env['TEST_FOLDER']!, 'migrated-server')
  const isReady = join(process.env['TEST_FOLDER']!, 'migrated-server-is-ready')
  try {
    mkdirSync(folder)
  } catch {
    for (const end = performance.now() + PATIENCE_MS; !existsSync(isReady); await sleep(50)) if (performance.now() > end) throw new Error('another test file did not make a server to begin with')
    return folder
  }
  const embedded = await startEmbedded({ dataDir: folder, flags: ['fsync=off'] })
  const db = openDatabase({ url: embedded.urls.owner, size: 1, timeoutMs: 30_000, name: 'test owner' })
  await migrate(db)
  for (const plane of ['control', 'runtime'] as const) await ensureLogin(db, plane, embedded.urls[plane], 30_000)
  await db.destroy()
  await embedded.stop()
  writeFileSync(isReady, '')
  return folder
}

export interface Pair {
  readonly primary: TestDatabase
  readonly killPrimary: () => Promise<void>
  /** The standby, once it answers. */
  readonly standby: () => Promise<TestDatabase>
  /** Resolves when the standby has all that the primary has. */
  readonly caughtUp: () => Promise<void>
  /** The standby becomes a primary, beside the one that it followed if that is there still. */
  readonly promote: () => Promise<TestDatabase>
}

/** A primary, and a standby that follows it until it is promoted. */
export async function startPair(t: Test): Promise<Pair> {
  const folder = copyOf(t, await migratedServer())
  const ofStandby = copyOf(t, folder)
  const { embedded, database } = await startDatabase(t, folder)
  const data = join(ofStandby, 'postgres', 'data')
  const { hostname, port, username, password } = new URL(database.owner)
  appendFileSync(join(data, 'postgresql.auto.conf'), `\nprimary_conninfo = 'host=${hostname} port=${port} user=${username} password=${password}'\n`)
  writeFileSync(join(data, 'standby.signal'), '')
  // This start is over when writes are taken, which is when the standby has been promoted.
  const starting = startEmbedded({ dataDir: ofStandby, flags: ['fsync=off'] })
  starting.catch(() => {})
  let isPromoted = false
  const postmaster = () => {
    const file = join(data, 'postmaster.pid')
    const [pid, , , ownPort, , , , state] = existsSync(file) ? readFileSync(file, 'utf8').split('\n').map((line) => line.trim()) : []
    return { pid: Number(pid), port: ownPort!, state }
  }
  t.teardown(async () => {
    if (!isPromoted && postmaster().pid > 0) process.kill(postmaster().pid, 'SIGINT')
    await starting.then((standby) => standby.stop(), () => {})
  })
  const standby = async () => {
    await eventually(() => postmaster().state === 'ready')
    const here = (url: string) => Object.assign(new URL(url), { port: postmaster().port }).href
    const db = openDatabase({ url: here(database.owner), size: 2, timeoutMs: 10_000, name: 'test owner' })
    t.teardown(() => db.destroy())
    return { owner: here(database.owner), control: here(database.control), runtime: here(database.runtime), db }
  }
  return {
    primary: database,
    killPrimary: () => kill(embedded, folder),
    standby,
    caughtUp: () => eventually(async () => (await sql<{ all: boolean }>`SELECT replay_lsn >= pg_current_wal_lsn() AS all FROM pg_stat_replication`.execute(database.db)).rows[0]?.all === true),
    promote: async () => {
      const promoted = await standby()
      isPromoted = true
      await sql`SELECT pg_promote()`.execute(promoted.db)
      await starting
      return promoted
    },
  }
}

/** A copy of the folder of a server that is stopped. */
export function copyOf(t: Test, folder: string): string {
  const other = emptyFolder(t)
  copy(folder, other)
  return other
}

function copy(from: string, to: string): void {
  execFileSync('cp', ['-a', `${from}/.`, to])
}

export async function kill(database: EmbeddedDatabase, folder: string): Promise<void> {
  const [pid] = readFileSync(join(folder, 'postgres', 'data', 'postmaster.pid'), 'utf8').split('\n')
  process.kill(Number(pid), 'SIGKILL')
  await database.stop()
}

export function emptyFolder(t: Test): string {
  const folder = dataFolder()
  t.teardown(() => rmSync(folder, { recursive: true, force: true }))
  return folder
}
