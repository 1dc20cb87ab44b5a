/** Keys and gateway credentials in the database, one by one. The hash of a secret is written here and never read. */

import { sql, type ExpressionBuilder, type Kysely, type Transaction, type Updateable } from 'kysely'
import type { Database, KeyRefusalsTable, KeyRow, KeysTable, NewKeyRow } from '../../db/tables.js'
import { againAfterConflict } from '../../db/transaction.js'
import type { CredentialKind } from '../../credentials/id.js'
import { CLOCK } from '../database-clock.js'
import type { AccessFilter } from '../operators/access-filter.js'

/** A key as the control plane knows it. */
export type KeyRecord = Omit<KeyRow, 'hash' | 'tag_root' | 'pepper_root' | 'crew'> & {
  readonly first_used_at: Date | null
  readonly last_used_at: Date | null
  /** A gateway's id (UUID). */
  readonly last_used_by: string | null
  readonly last_refused_at: Date | null
  readonly last_refused_code: KeyRefusalsTable['last_refused_code'] | null
}

export const KEY_COLUMNS = [
  'id', 'kind', 'org_id', 'mecha', 'name', 'scopes', 'metadata', 'enabled', 'created_at', 'created_by', 'expires_at',
  'revoked_at', 'revoked_by', 'revoke_reason', 'rotated_from', 'rotated_to',
] as const
const USE_COLUMNS = ['first_used_at', 'last_used_at', 'last_used_by', 'last_refused_at', 'last_refused_code'] as const
export const NEVER_USED = { first_used_at: null, last_used_at: null, last_used_by: null, last_refused_at: null, last_refused_code: null }

export async function insertKey(trx: Transaction<Database>, row: NewKeyRow): Promise<KeyRecord> {
  const key = await trx.insertInto('keys').values(row).returning(KEY_COLUMNS).executeTakeFirstOrThrow()
  return { ...key, ...NEVER_USED }
}

export async function findKey(db: Kysely<Database>, access: AccessFilter, kind: CredentialKind, id: string): Promise<KeyRecord | undefined> {
  return selectKeys(db)
    .where('id', '=', id).where(isAccessible(access, kind))
    .executeTakeFirst()
}

/** A key as it is now, by the database's clock, and which version of it that is: what changes it makes another one. */
export async function findKeyVersion(db: Kysely<Database>, access: AccessFilter, id: string): Promise<{ key: KeyRecord; version: string; now: Date } | undefined> {
  const row = await selectKeys(db)
    .select([sql<string>`keys.xmin::text`.as('version'), CLOCK.as('now')])
    .where('id', '=', id).where(isAccessible(access, 'mecha'))
    .executeTakeFirst()
  if (!row) return undefined
  const { version, now, ...key } = row
  return { key, version, now }
}

/** Reads a key and locks it until the transaction ends. */
export async function lockKey(trx: Transaction<Database>, access: AccessFilter, kind: CredentialKind, id: string): Promise<KeyRecord | undefined> {
  const locked = await trx
    .selectFrom('keys').select('id').where('id', '=', id).where(isAccessible(access, kind))
    .forUpdate().executeTakeFirst()
  // Read after the lock is taken: whether the key has been used is in another table, which the lock does not cover.
  return locked && findKey(trx, access, kind, id)
}

export type KeyChange = Pick<Updateable<KeysTable>, 'name' | 'metadata' | 'enabled' | 'expires_at'>

export async function updateKey(trx: Transaction<Database>, id: string, change: KeyChange): Promise<void> {
  await trx.updateTable('keys').set(change).where('id', '=', id).execute()
}

export interface Secret {
  readonly hash: string
  readonly tag_root: string
  readonly pepper_root: string
}

export async function replaceSecret(trx: Transaction<Database>, id: string, secret: Secret): Promise<void> {
  await trx.updateTable('keys').set(secret).where('id', '=', id).execute()
}

export interface Revocation {
  readonly revoked_at: Date
  readonly revoked_by: string
  readonly revoke_reason: string | null
}

/** Revokes a key, with its event, in one statement, which is a transaction by itself. Returns whether there is such a key. */
export async function revokeKey(db: Kysely<Database>, { orgId, crews }: AccessFilter, kind: CredentialKind, id: string, by: { readonly actor: string; readonly reason: string | null; readonly requestId: string; readonly address: string }): Promise<boolean> {
  const { rows } = await againAfterConflict(() => sql<{ found: boolean }>`
    SELECT revoke_key(${id}, ${kind}, ${orgId}, ${crews ?? null}, ${by.actor}, ${by.reason}, ${by.requestId}, ${by.address}) AS found`.execute(db))
  return rows[0]!.found
}

/** Revokes so many of the keys of a Mecha that are neither revoked nor expired, the newest first; returns their ids. */
export async function revokeKeysOfMecha(trx: Transaction<Database>, mecha: string, revocation: Revocation, limit: number): Promise<string[]> {
  const living = trx
    .selectFrom('keys').select('id').where('mecha', '=', mecha).where(isLiving(revocation.revoked_at))
    .orderBy('created_at', 'desc').orderBy('id', 'desc').limit(limit).forUpdate()
  const rows = await trx.updateTable('keys').set(revocation).where('id', 'in', living).returning('id').execute()
  return rows.map((row) => row.id)
}

/**
 * One key for each transaction that has lately revoked keys of a Mecha: a replica that has applied all of these has applied the
 * revocation of every key. What is no longer in the feed is older than any replica can be behind.
 */
export async function findLatelyRevoked(db: Kysely<Database>, mecha: string): Promise<string[]> {
  const { rows } = await sql<{ id: string }>`
    SELECT DISTINCT ON (xid) keys.id FROM keys JOIN changes ON changes.key_id = keys.id
    WHERE mecha = ${mecha} AND revoked_at > now() - interval '1 hour'`.execute(db)
  return rows.map((row) => row.id)
}

/** The database's clock, and how many keys of a Mecha are neither revoked nor expired by it. */
export interface LivingKeys {
  readonly now: Date
  readonly living: number
}

/** Locks a Mecha until the transaction ends. What adds keys to it, or ends them together, locks it first. Returns whether the organization has it. */
export async function lockMecha(trx: Transaction<Database>, handle: string, orgId: string): Promise<boolean> {
  const row = await trx
    .selectFrom('mechas').select('handle').where('handle', '=', handle).where('org_id', '=', orgId)
    .forUpdate().executeTakeFirst()
  return row !== undefined
}

/** Exact while the Mecha is locked. */
export async function countLivingKeys(db: Kysely<Database>, mecha: string): Promise<LivingKeys> {
  const { rows } = await sql<LivingKeys>`
    WITH clock AS MATERIALIZED (SELECT ${CLOCK} AS now)
    SELECT now, count_living_keys(${mecha}, now) AS living FROM clock`.execute(db)
  return rows[0]!
}

/** Keys, with what is known of their use. */
export function selectKeys(db: Pick<Kysely<Database>, 'selectFrom'>) {
  return db
    .selectFrom('keys')
    .leftJoin('key_usage', 'key_usage.key_id', 'keys.id')
    .leftJoin('key_refusals', 'key_refusals.key_id', 'keys.id')
    .select([...KEY_COLUMNS, ...USE_COLUMNS])
}

export type Keys = ExpressionBuilder<Database, 'keys'>

export function isAccessible({ orgId, crews }: AccessFilter, kind: CredentialKind) {
  return (eb: Keys) =>
    eb.and([
      orgId === null ? eb('org_id', 'is', null) : eb('org_id', '=', orgId),
      eb('kind', '=', kind),
      ...(crews ? [eb('crew', 'in', nonEmpty(crews))] : []),
    ])
}

/** `IN ()` is not SQL. No crew has an empty name, so this matches nothing, which is what an empty list means. */
function nonEmpty(crews: readonly string[]): string[] {
  return crews.length > 0 ? [...crews] : ['']
}

export function isLiving(now: Date) {
  return (eb: Keys) => eb.and([eb('revoked_at', 'is', null), eb.or([eb('expires_at', 'is', null), eb('expires_at', '>', now)])])
}
