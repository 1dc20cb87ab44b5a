/** PostgreSQL servers of a test's own, with data that survives them, and copies that are promoted. */

import { appendFileSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { sql } from 'kysely'
import type { Test } from 'tap'
import { startEmbedded, type EmbeddedDatabase } from '../../src/db/embedded.js'
import { ensureLogin } from '../../src/db/logins.js'
import { migrate } from '../../src/db/migrate.js'
import { openDatabase } from '../../src/db/pool.js'
import type { TestDatabase } from './database.js'

/** A PostgreSQL of the test's own, migrated, with the planes' logins. */
export async function startDatabase(t: Test, folder: string, flags: readonly string[] = []): Promise<{ embedded: EmbeddedDatabase; database: TestDatabase }> {
  const embedded = await startEmbedded({ dataDir: folder, flags: ['fsync=off', ...flags] })
  const { owner, control, runtime } = embedded.urls
  const db = openDatabase({ url: owner, size: 2, timeoutMs: 10_000, name: 'test owner' })
  await migrate(db)
  for (const plane of ['control', 'runtime'] as const) await ensureLogin(db, plane, embedded.urls[plane], 30_000)
  t.teardown(async () => {
    await db.destroy()
    await embedded.stop()
  })
  return { embedded, database: { owner, db, control, runtime } }
}

/** A copy of a primary's folder that follows it until it is promoted, which is when its start is over. */
export function startStandby(t: Test, copy: string, primary: EmbeddedDatabase): { promote: () => Promise<EmbeddedDatabase> } {
  const data = join(copy, 'postgres', 'data')
  const { hostname, port, username, password } = new URL(primary.urls.owner)
  appendFileSync(join(data, 'postgresql.auto.conf'), `\nprimary_conninfo = 'host=${hostname} port=${port} user=${username} password=${password}'\n`)
  writeFileSync(join(data, 'standby.signal'), '')
  const starting = startEmbedded({ dataDir: copy, flags: ['fsync=off'] })
  t.teardown(async () => (await starting).stop())
  return {
    async promote() {
      const [, , , own] = readFileSync(join(data, 'postmaster.pid'), 'utf8').split('\n')
      const db = openDatabase({ url: Object.assign(new URL(primary.urls.owner), { port: own }).href, size: 1, timeoutMs: 10_000, name: 'test owner' })
      await sql`SELECT pg_promote()`.execute(db)
      await db.destroy()
      return starting
    },
  }
}

export async function kill(database: EmbeddedDatabase, folder: string): Promise<void> {
  const [pid] = readFileSync(join(folder, 'postgres', 'data', 'postmaster.pid'), 'utf8').split('\n')
  process.kill(Number(pid), 'SIGKILL')
  await database.stop()
}

export function emptyFolder(t: Test): string {
  const folder = mkdtempSync(join(tmpdir(), 'mecha-keys-feed-'))
  t.teardown(() => rmSync(folder, { recursive: true, force: true }))
  return folder
}
