/** What was acknowledged is there after a crash of the database, whatever its default for commits is. */

import { mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { sql } from 'kysely'
import t from 'tap'
import { startEmbedded, type EmbeddedDatabase } from '../../src/db/embedded/embedded.js'
import { ensureLogin } from '../../src/db/logins.js'
import { migrate } from '../../src/db/migrate.js'
import { openDatabase } from '../../src/db/pool.js'
import { createDatabase, type TestDatabase } from '../helpers/database.js'
import { eventually } from '../helpers/eventually.js'
import { fresh, startService } from '../helpers/service.js'

const ROUNDS = 2
/** A commit that nobody waits for stays in memory for this long: the crash comes before. */
const FLAGS = ['synchronous_commit=off', 'wal_writer_delay=10s', 'wal_writer_flush_after=1GB']

t.test('a revocation that had its receipt outlives a crash of the database', async (t) => {
  const dataDir = mkdtempSync(join(tmpdir(), 'mecha-keys-durability-'))
  t.teardown(() => rmSync(dataDir, { recursive: true, force: true }))
  for (let round = 1; round <= ROUNDS; round++) {
    const postgres = await startEmbedded({ dataDir, flags: FLAGS })
    t.teardown(() => postgres.stop())
    const database = await prepared(postgres)
    const service = await startService(t, {}, database)
    await fresh(service)
    // The replica of the round before has not said goodbye.
    await sql`DELETE FROM replicas WHERE seen_at < now() - interval '2 seconds'`.execute(database.db)
    const { key } = await service.issue()
    const revoked = await service.call('POST', `/v1/keys/${key.id}/revoke`, { token: await service.token() })
    t.match(revoked, { status: 200, body: { propagation: { replicas: 1, confirmed: 1 } } })
    crash(dataDir)
    await database.db.destroy()
    await service.app.close()
    await postgres.stop()

    const again = await restarted(dataDir)
    t.teardown(() => again.stop())
    const db = openDatabase({ url: again.urls.owner, size: 1, timeoutMs: 30_000, name: 'test' })
    const rows = await db.selectFrom('keys').select(['revoked_at', 'revoked_by']).orderBy('created_at').execute()
    t.match(rows, Array.from({ length: round }, () => ({ revoked_at: Date, revoked_by: 'alice' })), `crash ${round}`)
    t.equal(rows.length, round)
    await db.destroy()
    await again.stop()
  }
})

t.test('every connection of the service commits durably, and so does its login behind a pooler', async (t) => {
  const database = await createDatabase(t)
  await ensureLogin(database.db, 'control', database.control, 1000)
  await ensureLogin(database.db, 'runtime', database.runtime, 1000)
  for (const url of [database.control, database.runtime]) {
    const db = openDatabase({ url: withOption(url, '-c synchronous_commit=off'), size: 1, timeoutMs: 10_000, name: 'test' })
    t.match((await sql`SHOW synchronous_commit`.execute(db)).rows, [{ synchronous_commit: 'on' }], 'whatever the URL asks for')
    await db.destroy()
  }
  const { rows } = await sql<{ settings: string[] }>`
    SELECT setconfig AS settings FROM pg_db_role_setting WHERE setdatabase = (SELECT oid FROM pg_database WHERE datname = current_database())`.execute(database.db)
  t.equal(rows.length, 2)
  for (const { settings } of rows) t.ok(settings.includes('synchronous_commit=on'))
})

async function prepared({ urls }: EmbeddedDatabase): Promise<TestDatabase> {
  const db = openDatabase({ url: urls.owner, size: 2, timeoutMs: 30_000, name: 'test owner' })
  await migrate(db)
  // Logins as somebody else made them, who did not know of the setting.
  for (const plane of ['control', 'runtime'] as const) await ensureLogin(db, plane, urls[plane], 5000)
  await sql`ALTER ROLE mecha_keys_control_login IN DATABASE postgres RESET synchronous_commit`.execute(db)
  await sql`ALTER ROLE mecha_keys_runtime_login IN DATABASE postgres RESET synchronous_commit`.execute(db)
  await sql`CHECKPOINT`.execute(db)
  return { ...urls, db }
}

/** Ends the server, all its processes and their keeper at once, as a loss of power does; what they had written to files stays. */
function crash(dataDir: string): void {
  const [postmaster] = readFileSync(join(dataDir, 'postgres', 'data', 'postmaster.pid'), 'utf8').split('\n').map(Number)
  const keeper = Number(readFileSync(join(dataDir, 'postgres', 'keeper.pid'), 'utf8'))
  const children = readdirSync('/proc').filter((pid) => /^\d+$/.test(pid) && parentOf(pid) === postmaster)
  // Stopped first, so that none has a moment in which the others are gone.
  for (const signal of ['SIGSTOP', 'SIGKILL'] as const) for (const pid of [keeper, postmaster!, ...children.map(Number)]) process.kill(pid, signal)
}

function parentOf(pid: string): number | undefined {
  try {
    return Number(/^\d+ \(.*\) \S (\d+)/s.exec(readFileSync(`/proc/${pid}/stat`, 'utf8'))?.[1])
  } catch {
    return undefined
  }
}

async function restarted(dataDir: string): Promise<EmbeddedDatabase> {
  let database: EmbeddedDatabase | undefined
  await eventually(async () => (database = await startEmbedded({ dataDir, flags: FLAGS }).catch(() => undefined)) !== undefined)
  return database!
}

function withOption(url: string, options: string): string {
  const given = new URL(url)
  given.searchParams.set('options', options)
  return given.href
}
