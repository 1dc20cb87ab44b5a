/** What exchange, introspection and the status list ask of the database. */

import { sql, type Kysely } from 'kysely'
import type { Database } from '../../db/tables.js'
import type { StoredSigningKey } from '../../key/signing.js'

export interface FoundSigningKey extends StoredSigningKey {
  readonly signs_from: Date
}

/** All signing keys, oldest first, and the database's clock. */
export async function findSigningKeys(db: Kysely<Database>): Promise<{ keys: FoundSigningKey[]; now: Date }> {
  const rows = await db
    .selectFrom('signing_keys')
    .select(['kid', 'alg', 'sealed', 'root', 'signs_from', sql<Date>`clock_timestamp()`.as('now')])
    .orderBy('signs_from').orderBy('kid')
    .execute()
  return { keys: rows.map(({ now: _now, ...key }) => key), now: rows[0]?.now ?? new Date(0) }
}

/** The place of a key (UUID) in the status list. A key that has none gets one. */
export async function findStatusPlace(db: Kysely<Database>, keyId: string): Promise<number> {
  const { rows } = await sql<{ place: number }>`SELECT token_status_place(${keyId}) AS place`.execute(db)
  return rows[0]!.place
}

/** The places of keys that are not good, and how many places there are. */
export interface Statuses {
  readonly places: number
  /** Revoked, expired, or deleted by hand. */
  readonly invalid: readonly number[]
  /** Disabled: they can come back. */
  readonly suspended: readonly number[]
  readonly now: Date
}

export async function findStatuses(db: Kysely<Database>): Promise<Statuses> {
  const { rows } = await sql<Statuses>`
    WITH statuses AS MATERIALIZED (
      SELECT idx, keys.id IS NULL OR revoked_at IS NOT NULL OR COALESCE(expires_at <= clock_timestamp(), false) AS over, enabled
      FROM token_status LEFT JOIN keys ON keys.id = token_status.key_id
      WHERE token_status.key_id IS NOT NULL
    )
    SELECT (SELECT COALESCE(max(idx) + 1, 0) FROM token_status) AS places,
           ARRAY(SELECT idx FROM statuses WHERE over) AS invalid,
           ARRAY(SELECT idx FROM statuses WHERE NOT over AND NOT enabled) AS suspended,
           clock_timestamp() AS now`.execute(db)
  return rows[0]!
}
