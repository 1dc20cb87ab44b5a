/** What exchange, introspection, revocation and the status list ask of the database. */

import { sql, type Kysely } from 'kysely'
import { history, type OfHistory } from '../../db/history.js'
import type { Database, KeyRow } from '../../db/tables.js'
import type { StoredSigningKey } from '../../credentials/signing-key.js'

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

/** A status, as the draft has it in section 7.1: of a key that is good. */
export const VALID = 0
/** Revoked, expired, or the row is gone. */
export const INVALID = 1
/** Disabled: it can come back. */
export const SUSPENDED = 2

/** Where somebody stands who knows all statuses up to a point, and can read on from there. */
export interface StatusPosition extends OfHistory {
  /** Which transactions were over, as PostgreSQL writes it. */
  readonly snapshot: string
  /** The run of the server that the feed followed in before this was read; `null`: in none. */
  readonly run: number | null
  /** The database's clock. */
  readonly now: Date
}

/** Indexes of the status list, and the status of each. */
export interface Statuses {
  readonly indexes: readonly number[]
  /** {@link VALID}, {@link INVALID} or {@link SUSPENDED}. */
  readonly statuses: readonly number[]
}

export interface StatusChanges extends Statuses, Omit<StatusPosition, 'run'> {
  /** How many indexes there are, free ones included. */
  readonly places: number
  /** False where something may be missing of what has changed since. */
  readonly isComplete: boolean
}

/** The statuses that may have changed since a position. Without one, none: only where to read on from. */
export async function findStatusChanges(db: Kysely<Database>, since: StatusPosition | undefined): Promise<StatusChanges> {
  const { rows } = await sql<Omit<StatusChanges, 'isComplete'> & { is_complete: boolean }>`
    SELECT ${history} AS history, pg_current_snapshot()::text AS snapshot, found.*
    FROM token_status_changes(${since?.snapshot ?? null}::pg_snapshot, ${since?.now ?? null}::timestamptz, ${since?.run ?? null}::integer) AS found`.execute(db)
  const { is_complete: isComplete, ...found } = rows[0]!
  return { ...found, isComplete }
}

/** The statuses of indexes from one on and below another that are not {@link VALID}. */
export async function findStatuses(db: Kysely<Database>, from: number, below: number): Promise<OfHistory & Statuses> {
  const { rows } = await sql<OfHistory & Statuses>`SELECT ${history} AS history, found.* FROM token_statuses_between(${from}, ${below}) AS found`.execute(db)
  return rows[0]!
}

/** Who ends a key by presenting it, as far as is known of them. */
export interface Holder {
  readonly requestId: string
  readonly address: string
}

/**
 * Revokes a key whose secret was proved against this hash, and writes that its holder did, in one transaction.
 *
 * @returns whether the key is over, by this call or otherwise; not when its hash is another one by now
 */
export async function revokeByHolder(db: Kysely<Database>, { id, hash }: Pick<KeyRow, 'id' | 'hash'>, { requestId, address }: Holder): Promise<OfHistory & { readonly isOver: boolean }> {
  const { rows } = await sql<OfHistory & { is_over: boolean }>`
    SELECT ${history} AS history, revoke_by_holder(${id}, ${hash}, ${requestId}, ${address}) AS is_over`.execute(db)
  const { history: of, is_over: isOver } = rows[0]!
  return { history: of, isOver }
}
