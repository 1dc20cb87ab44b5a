/** What the control plane asks of the database about signing keys and the indexes of the status list. */

import { sql, type Kysely, type Selectable, type Transaction } from 'kysely'
import type { Database, SigningKeysTable } from '../../db/tables.js'
import { KEEP } from '../../credentials/signing-key.js'

export type SigningKeyRow = Selectable<SigningKeysTable>

/** Locks the set of signing keys until the transaction ends, so that one process at a time changes it. Returns them, the oldest first. */
export async function lockSigningKeys(trx: Transaction<Database>): Promise<SigningKeyRow[]> {
  await sql`SELECT pg_advisory_xact_lock(20828)`.execute(trx)
  return listSigningKeys(trx)
}

export async function listSigningKeys(db: Kysely<Database>): Promise<SigningKeyRow[]> {
  return db.selectFrom('signing_keys').selectAll().orderBy('signs_from').orderBy('kid').execute()
}

export async function insertSigningKey(trx: Transaction<Database>, row: SigningKeyRow): Promise<void> {
  await trx.insertInto('signing_keys').values(row).execute()
}

export async function replaceSeal(trx: Transaction<Database>, { kid, sealed, root }: Pick<SigningKeyRow, 'kid' | 'sealed' | 'root'>): Promise<void> {
  await trx.updateTable('signing_keys').set({ sealed, root }).where('kid', '=', kid).execute()
}

export async function deleteSigningKeys(trx: Transaction<Database>, kids: readonly string[]): Promise<void> {
  if (kids.length > 0) await trx.deleteFrom('signing_keys').where('kid', 'in', kids).execute()
}

/** Indexes that are looked at by one statement: some tens of milliseconds of PostgreSQL. */
const INDEXES_PER_STATEMENT = 10_000

/**
 * Frees the indexes of keys that had ended, or were erased, so long before an instant that nothing that was exchanged for them is alive. All of
 * them are looked at, so that at millions this is many short statements and never one that is cancelled.
 */
export async function freeStatusListIndexes(db: Kysely<Database>, now: Date): Promise<void> {
  const last = await db.selectFrom('token_status').select(({ fn }) => fn.max('idx').as('idx')).executeTakeFirst()
  const before = sql`${now}::timestamptz - make_interval(secs => ${KEEP})`
  for (let first = 0; first <= (last?.idx ?? -1); first += INDEXES_PER_STATEMENT)
    await sql`
      WITH due AS MATERIALIZED (
        SELECT idx, key_id FROM token_status
        WHERE idx >= ${first} AND idx < ${first + INDEXES_PER_STATEMENT} AND key_id IS NOT NULL
          AND (key_erased_at < ${before} OR (SELECT LEAST(revoked_at, expires_at) FROM keys WHERE id = key_id) < ${before}))
      UPDATE token_status SET key_id = NULL FROM due WHERE token_status.idx = due.idx AND token_status.key_id = due.key_id`.execute(db)
}
