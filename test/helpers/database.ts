/** Databases of tests. */

import { randomBytes } from 'node:crypto'
import { sql, type Kysely } from 'kysely'
import tap, { type Test } from 'tap'
import { isConflict } from '../../src/db/outage.js'
import { openDatabase } from '../../src/db/pool.js'
import type { Database } from '../../src/db/tables.js'
import { eventually } from './eventually.js'
import { LOGINS, openAdmin, urlFor } from './server.js'

export interface TestDatabase {
  readonly owner: string
  readonly control: string
  readonly runtime: string
  /** As the owner of the tables, for what an operator would do by hand. */
  readonly db: Kysely<Database>
}

let ofThisFile: Promise<TestDatabase> | undefined

/** The database of this test file, with nothing in it. Tests of one file run one after another, so they can share it. */
export async function emptyDatabase(): Promise<TestDatabase> {
  if (!ofThisFile) return (ofThisFile = createDatabase(tap))
  const database = await ofThisFile
  // A service that is running takes its locks in an order of its own: what was in a deadlock with it is begun again.
  for (let attempts = 0; ; attempts++)
    try {
      await removeRows(database.db)
      return database
    } catch (error) {
      if (attempts === 20 || !isConflict(error)) throw error
    }
}

async function removeRows(db: Kysely<Database>): Promise<void> {
  await db.transaction().execute(async (trx) => {
    // Events can be neither changed nor deleted: their trigger has to look away.
    await sql`SET LOCAL session_replication_role = replica`.execute(trx)
    await sql`TRUNCATE events, idempotency_keys, key_usage, key_refusals, keys, mechas, crews, changes, replicas, signing_keys, token_status, nonces, erasures, events_expired RESTART IDENTITY`.execute(trx)
    await sql`UPDATE nonce_sweeps SET swept_until = '-infinity'`.execute(trx)
  })
}

/** A database of its own, cloned from the migrated template or empty. */
export async function createDatabase(t: Pick<Test, 'teardown'>, options: { empty?: boolean } = {}): Promise<TestDatabase> {
  const server = process.env['TEST_SERVER_URL']
  const template = process.env['TEST_TEMPLATE']
  if (!server || !template) throw new Error('run the tests with npm test, which starts a PostgreSQL for them')
  const name = `mecha_keys_${randomBytes(6).toString('hex')}`
  const admin = openAdmin(server)
  await admin.query(`CREATE DATABASE ${name} TEMPLATE ${options.empty ? 'template1' : template}`)
  const owner = urlFor(server, name)
  const db = openDatabase({ url: owner, size: 5, timeoutMs: 30_000, name: 'test owner' })
  // A copy of a database is not the one that was accepted.
  if (!options.empty) await sql`SELECT accept_database('test')`.execute(db)
  t.teardown(async () => {
    await db.destroy()
    await admin.query(`DROP DATABASE ${name} WITH (FORCE)`)
    await admin.end()
  })
  return { owner, control: urlFor(server, name, LOGINS.control), runtime: urlFor(server, name, LOGINS.runtime), db }
}

/** Resolves when every replica, and one at least, has applied what has been committed so far, by hand too. */
export async function applied({ db }: TestDatabase): Promise<void> {
  const { rows } = await sql<{ xid: string }>`SELECT pg_current_xact_id()::text AS xid, pg_notify('mecha_keys_changes', '')`.execute(db)
  const haveAll = async () => {
    const answer = await sql<{ all: boolean | null }>`SELECT bool_and(pg_visible_in_snapshot(${rows[0]!.xid}::xid8, snapshot)) AS all FROM replicas`.execute(db)
    return answer.rows[0]!.all === true
  }
  await eventually(haveAll)
}
