/** Whether a plane can work with its database. */

import { sql, type Kysely } from 'kysely'
import { restoreHold } from './identity.js'
import { pendingMigrations } from './migrate.js'
import { databaseFailure } from './outage.js'
import type { Database } from './tables.js'

/** SQLSTATEs of a login that is refused, or a database that does not exist: nothing that waiting mends. */
const NOT_SET_UP = /^(28|3D)/

/** What is wrong with a plane's database, in a sentence for people; `undefined` when nothing is. */
export async function databaseTrouble(db: Kysely<Database>): Promise<string | undefined> {
  try {
    const pending = await pendingMigrations(db)
    if (pending.length > 0) return `run mecha-keys migrate: ${pending.join(', ')} missing`
    return (await whyReadOnly(db)) ?? (await restoreHold(db))
  } catch (error) {
    const failure = NOT_SET_UP.test(String((error as { code?: unknown }).code)) ? undefined : databaseFailure(error)
    if (failure === 'unavailable') return 'the database does not answer'
    if (failure === 'cancelled') return 'the database does not answer within DATABASE_TIMEOUT'
    return 'the database is not set up for this login: run mecha-keys migrate'
  }
}

/** Both planes write: revocations, first uses, how far a replica has come. */
async function whyReadOnly(db: Kysely<Database>): Promise<string | undefined> {
  const { rows } = await sql<{ is_standby: boolean; is_read_only: boolean }>`
    SELECT pg_is_in_recovery() AS is_standby, current_setting('transaction_read_only')::boolean AS is_read_only`.execute(db)
  const { is_standby, is_read_only } = rows[0]!
  if (is_standby) return 'the database is a standby, which cannot be written to: lead DATABASE_URL to the primary'
  return is_read_only ? 'the database is read-only: default_transaction_read_only is on' : undefined
}
