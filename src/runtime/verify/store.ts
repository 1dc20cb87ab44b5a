/** What verify reads of keys, and what it writes: first uses, and better hashes of the same secrets. */

import { sql, type Kysely } from 'kysely'
import { history, type OfHistory } from '../../db/history.js'
import { preparedAs } from '../../db/pool.js'
import type { Database, KeyRow } from '../../db/tables.js'

/** A row of `keys` as verify needs it. */
export type CredentialRow = Pick<
  KeyRow,
  'id' | 'kind' | 'org_id' | 'mecha' | 'scopes' | 'metadata' | 'hash' | 'pepper_root' | 'enabled' | 'created_at' | 'expires_at' | 'revoked_at'
> & {
  /** The transaction that wrote this version of the row: another one after every change. */
  readonly version: number
}

/** A row, and what is true of it only at the moment of reading. */
export interface FoundCredential {
  readonly row: CredentialRow
  readonly used: boolean
  /** The database's clock. */
  readonly now: Date
}

/** JSON has no type for an instant. */
type AsJson<Row> = { readonly [Column in keyof Row]: Row[Column] extends Date ? string : Row[Column] extends Date | null ? string | null : Row[Column] }

/**
 * The rows of some keys: of those that there are, in any order. They come as one value, so that there is a row that names the
 * history whether there is a key or not: a join planned and cost more than what it was for. `used` is a value and no EXISTS,
 * which PostgreSQL answers for many keys by reading the whole of `key_usage`.
 */
export async function findCredentials(db: Kysely<Database>, ids: readonly string[]): Promise<OfHistory & { readonly found: FoundCredential[] }> {
  const { rows } = await sql<OfHistory & { now: Date; found: (AsJson<CredentialRow> & { readonly used: boolean })[] }>`
    SELECT ${history} AS history, clock_timestamp() AS now, (
      SELECT coalesce(json_agg(key), '[]') FROM (
        SELECT id, kind, org_id, mecha, scopes, metadata, hash, pepper_root, enabled, created_at, expires_at, revoked_at, xmin::text::float8 AS version,
               coalesce((SELECT true FROM key_usage WHERE key_id = id), false) AS used
        FROM keys WHERE id = ANY(${ids}::uuid[])) key) AS found ${preparedAs('find_credentials')}`.execute(db)
  const { history: of, now, found } = rows[0]!
  return { history: of, found: found.map(({ used, ...row }) => ({ row: withInstants(row), used, now })) }
}

function withInstants(row: AsJson<CredentialRow>): CredentialRow {
  const instant = (text: string | null) => (text === null ? null : new Date(text))
  return { ...row, created_at: new Date(row.created_at), expires_at: instant(row.expires_at), revoked_at: instant(row.revoked_at) }
}

/**
 * Records that a key has been used for the first time. The row is locked while that is written, so that an
 * `Idempotency-Key` cannot replace its secret in between: either the use or the replacement comes first. A key whose end came
 * while the row was waited for was not used.
 *
 * @param by the gateway (UUID) that asked, if one did
 * @returns `isLive: false` when what decides about the key is no longer as it was read; read it again
 */
export async function claimFirstUse(db: Kysely<Database>, row: CredentialRow, by: string | null): Promise<OfHistory & { readonly isLive: boolean }> {
  const { id, hash, enabled, expires_at } = row
  const { rows } = await sql<OfHistory & { is_live: boolean }>`
    WITH live AS (
      SELECT id, expires_at FROM keys
      WHERE id = ${id} AND hash = ${hash} AND enabled = ${enabled} AND expires_at IS NOT DISTINCT FROM ${expires_at} AND revoked_at IS NULL
      FOR SHARE
    ), used AS (
      INSERT INTO key_usage (key_id, first_used_at, last_used_at, last_used_by)
      SELECT id, clock_timestamp(), clock_timestamp(), ${by}::uuid FROM live WHERE expires_at IS NULL OR expires_at > clock_timestamp()
      ON CONFLICT (key_id) DO NOTHING
    )
    SELECT ${history} AS history, EXISTS (SELECT FROM live) AS is_live`.execute(db)
  const { history: of, is_live: isLive } = rows[0]!
  return { history: of, isLive }
}

/**
 * {@link claimFirstUse} of many rows in one statement. It waits for no key that somebody is changing, and takes the others
 * in the order of their ids, so that two such statements never wait for each other. What it passed over has to be claimed alone.
 *
 * @param by the gateway (UUID) that asked
 * @returns places of the rows that are still as they were read, and now are claimed
 */
export async function claimFirstUses(db: Kysely<Database>, rows: readonly CredentialRow[], by: string): Promise<OfHistory & { readonly claimed: number[] }> {
  const seen = JSON.stringify(rows.map(({ id, hash, enabled, expires_at }, place) => ({ place, id, hash, enabled, expires_at })))
  const { rows: answers } = await sql<OfHistory & { claimed: number[] }>`
    WITH live AS (
      SELECT place, keys.id, keys.expires_at
      FROM keys JOIN jsonb_to_recordset(${seen}::jsonb) AS seen (place int, id uuid, hash text, enabled boolean, expires_at timestamptz)
        ON keys.id = seen.id AND keys.hash = seen.hash AND keys.enabled = seen.enabled AND keys.expires_at IS NOT DISTINCT FROM seen.expires_at
      WHERE revoked_at IS NULL
      ORDER BY keys.id
      FOR SHARE OF keys SKIP LOCKED
    ), used AS (
      INSERT INTO key_usage (key_id, first_used_at, last_used_at, last_used_by)
      SELECT id, clock_timestamp(), clock_timestamp(), ${by}::uuid FROM live WHERE expires_at IS NULL OR expires_at > clock_timestamp()
      ON CONFLICT (key_id) DO NOTHING
    )
    SELECT ${history} AS history, ARRAY(SELECT place FROM live) AS claimed`.execute(db)
  return answers[0]!
}

/** Replaces a hash by a better one of the same secret, unless the row has changed since. */
export async function replaceHash(db: Kysely<Database>, row: CredentialRow, hashed: Pick<KeyRow, 'hash' | 'pepper_root'>): Promise<void> {
  await db
    .updateTable('keys')
    .set(hashed)
    .where('id', '=', row.id)
    .where('hash', '=', row.hash)
    .where('revoked_at', 'is', null)
    .execute()
}
