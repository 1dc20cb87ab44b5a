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

/** Frees the indexes of keys that had ended, or were erased, so long before an instant that nothing that was exchanged for them is alive. */
export async function freeStatusListIndexes(db: Kysely<Database>, now: Date): Promise<void> {
  await sql`
    UPDATE token_status SET key_id = NULL FROM keys
    WHERE keys.id = token_status.key_id AND LEAST(keys.revoked_at, keys.expires_at) < ${now}::timestamptz - make_interval(secs => ${KEEP})`.execute(db)
  await sql`UPDATE token_status SET key_id = NULL WHERE key_erased_at < ${now}::timestamptz - make_interval(secs => ${KEEP})`.execute(db)
}
