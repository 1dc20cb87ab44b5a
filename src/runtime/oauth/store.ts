/** What exchange, introspection and the status list ask of the database. */

import { sql, type Kysely } from 'kysely'
import type { Database } from '../../db/tables.js'
import { HISTORY } from '../../db/history.js'
import type { StoredSigningKey } from '../../key/signing.js'
import type { OfHistory } from '../store.js'

const history = sql<string>`${sql.raw(HISTORY)}`

export interface FoundSigningKey extends StoredSigningKey {
  readonly signs_from: Date
}

/** All signing keys, oldest first, and the database's clock. */
export async function findSigningKeys(db: Kysely<Database>): Promise<OfHistory & { readonly keys: FoundSigningKey[]; readonly now: Date }> {
  const rows = await db
    .selectFrom(sql<OfHistory & { now: Date }>`(SELECT ${history} AS history, clock_timestamp() AS now)`.as('answer'))
    .leftJoin('signing_keys', (join) => join.onTrue())
    .select(['kid', 'alg', 'sealed', 'root', 'signs_from', 'answer.history', 'answer.now'])
    .orderBy('signs_from').orderBy('kid')
    .execute()
  const { history: of, now } = rows[0]!
  return { history: of, now, keys: rows.flatMap(({ history: _history, now: _now, ...key }) => (key.kid === null ? [] : [key as FoundSigningKey])) }
}

/** The place of a key (UUID) in the status list. A key that has none gets one. */
export async function findStatusPlace(db: Kysely<Database>, keyId: string): Promise<OfHistory & { readonly place: number }> {
  const { rows } = await sql<OfHistory & { place: number }>`SELECT ${history} AS history, token_status_place(${keyId}) AS place`.execute(db)
  return rows[0]!
}

/** The places of keys that are not good, and how many places there are. */
export interface Statuses extends OfHistory {
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
    SELECT ${history} AS history, (SELECT COALESCE(max(idx) + 1, 0) FROM token_status) AS places,
           ARRAY(SELECT idx FROM statuses WHERE over) AS invalid,
           ARRAY(SELECT idx FROM statuses WHERE NOT over AND NOT enabled) AS suspended,
           clock_timestamp() AS now`.execute(db)
  return rows[0]!
}
