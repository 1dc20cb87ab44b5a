/** What the runtime plane asks of the database, under a role that can do nothing else. */

import { sql, type Kysely } from 'kysely'
import type { Database, KeyRow } from '../db/tables.js'

/** A row of `keys` as verify needs it. */
export type CredentialRow = Pick<
  KeyRow,
  'id' | 'kind' | 'org_id' | 'mecha' | 'scopes' | 'metadata' | 'hash' | 'pepper_root' | 'enabled' | 'created_at' | 'expires_at' | 'revoked_at'
>

/** A row, and what is true of it only at the moment of reading. */
export interface FoundCredential {
  readonly row: CredentialRow
  readonly used: boolean
  /** The database's clock. */
  readonly now: Date
}

/** The rows of some keys: of those that there are, in any order. */
export async function findCredentials(db: Kysely<Database>, ids: readonly string[]): Promise<FoundCredential[]> {
  const rows = await db
    .selectFrom('keys')
    .select(['id', 'kind', 'org_id', 'mecha', 'scopes', 'metadata', 'hash', 'pepper_root', 'enabled', 'created_at', 'expires_at', 'revoked_at'])
    .select([sql<boolean>`EXISTS (SELECT FROM key_usage WHERE key_id = id)`.as('used'), sql<Date>`clock_timestamp()`.as('now')])
    .where('id', '=', sql<string>`ANY(${ids}::uuid[])`)
    .execute()
  return rows.map(({ used, now, ...row }) => ({ row, used, now }))
}

/**
 * Records that a key has been used for the first time. The row is held while that is written, so that an
 * `Idempotency-Key` cannot replace its secret in between: either the use or the replacement comes first.
 *
 * @param by the gateway (UUID) that asked, if one did
 * @returns `false` when what decides about the key is no longer as it was read; read it again
 */
export async function claimFirstUse(db: Kysely<Database>, row: CredentialRow, by: string | null): Promise<boolean> {
  const { id, hash, enabled, expires_at } = row
  const { rows } = await sql<{ id: string }>`
    WITH live AS (
      SELECT id FROM keys
      WHERE id = ${id} AND hash = ${hash} AND enabled = ${enabled} AND expires_at IS NOT DISTINCT FROM ${expires_at} AND revoked_at IS NULL
      FOR SHARE
    ), used AS (
      INSERT INTO key_usage (key_id, first_used_at, last_used_at, last_used_by)
      SELECT id, clock_timestamp(), clock_timestamp(), ${by}::uuid FROM live
      ON CONFLICT (key_id) DO NOTHING
    )
    SELECT id FROM live`.execute(db)
  return rows.length === 1
}

/**
 * {@link claimFirstUse} of many rows in one statement. It waits for no key that somebody is changing, and takes the others
 * in the order of their ids, so that it can hold up nobody who holds it up: such a key has a statement of its own.
 *
 * @returns for each row, in their order, whether what decides about the key is still as it was read
 */
export async function claimFirstUses(db: Kysely<Database>, rows: readonly CredentialRow[], by: string): Promise<boolean[]> {
  const seen = JSON.stringify(rows.map(({ id, hash, enabled, expires_at }, place) => ({ place, id, hash, enabled, expires_at })))
  const { rows: live } = await sql<{ place: number }>`
    WITH live AS (
      SELECT place, keys.id
      FROM keys JOIN jsonb_to_recordset(${seen}::jsonb) AS seen (place int, id uuid, hash text, enabled boolean, expires_at timestamptz)
        ON keys.id = seen.id AND keys.hash = seen.hash AND keys.enabled = seen.enabled AND keys.expires_at IS NOT DISTINCT FROM seen.expires_at
      WHERE revoked_at IS NULL
      ORDER BY keys.id
      FOR SHARE OF keys SKIP LOCKED
    ), used AS (
      INSERT INTO key_usage (key_id, first_used_at, last_used_at, last_used_by)
      SELECT id, clock_timestamp(), clock_timestamp(), ${by}::uuid FROM live
      ON CONFLICT (key_id) DO NOTHING
    )
    SELECT place FROM live`.execute(db)
  const claimed = new Set(live.map(({ place }) => place))
  return Promise.all(rows.map(async (row, place) => claimed.has(place) || claimFirstUse(db, row, by)))
}

/** Who ends a key by presenting it, as far as is known of them. */
export interface Holder {
  readonly requestId: string
  readonly address: string
}

/**
 * Revokes a key whose secret was proved against this hash, and writes that its holder did, in one transaction.
 *
 * @returns whether the key is over, by this call or otherwise; `false` when its hash is another one by now
 */
export async function revokeByHolder(db: Kysely<Database>, { id, hash }: Pick<KeyRow, 'id' | 'hash'>, { requestId, address }: Holder): Promise<boolean> {
  const { rows } = await sql<{ is_over: boolean }>`SELECT revoke_by_holder(${id}, ${hash}, ${requestId}, ${address}) AS is_over`.execute(db)
  return rows[0]!.is_over
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

/** A nonce that a gateway wants to take. */
export interface Nonce {
  readonly keyId: string
  /** The organization whose keys the gateway may speak of, or `null` for all. */
  readonly orgId: string | null
  readonly digest: Buffer
  /** From when on the gateway that asks refuses the request by its timestamp. */
  readonly expiresAt: Date
  /** Shortest that it is kept, in seconds, whatever the gateway asks for. */
  readonly minTtl: number
  /** How far ahead `expiresAt` may be, in seconds. */
  readonly maxTtl: number
}

/** What comes of wanting a nonce. */
export type NonceOutcome = 'taken' | 'taken_before' | 'untimely' | 'no_key'

/**
 * Takes a nonce unless it has been taken: of many who ask at once, whichever replica they ask, one does. It is kept until no
 * gateway accepts the request any more, and what has expired is swept; see `take_nonce` in the migrations.
 */
export async function takeNonce(db: Kysely<Database>, { keyId, orgId, digest, expiresAt, minTtl, maxTtl }: Nonce): Promise<NonceOutcome> {
  const { rows } = await sql<{ outcome: NonceOutcome }>`
    SELECT take_nonce(${keyId}::uuid, ${orgId}::text, ${digest}::bytea, ${expiresAt}::timestamptz, ${minTtl}::integer, ${maxTtl}::integer) AS outcome`.execute(db)
  return rows[0]!.outcome
}
