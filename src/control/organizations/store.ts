/** What erasing an organization asks of the database, as the owner of the tables. */

import { createHash } from 'node:crypto'
import { sql, type Kysely, type Transaction } from 'kysely'
import type { Database } from '../../db/tables.js'
import type { CredentialKind } from '../../credentials/id.js'

/** What there is of an organization. */
export interface Census {
  readonly mechas: number
  readonly keys: number
  readonly keys_not_revoked: number
  readonly gateways: number
  readonly gateways_not_revoked: number
  readonly crews: number
  readonly events: number
}

export interface Erasure {
  readonly confirmation: string
  readonly counts: Census
  readonly ended_at: Date | null
}

/** How an organization is named in what remains of it: the SHA-256 of its id, in hexadecimal digits. */
export function organizationDigest(orgId: string): string {
  return createHash('sha256').update(orgId).digest('hex')
}

const digestOf = (orgId: string) => sql`decode(${organizationDigest(orgId)}, 'hex')`
/** Events of the organization, and those of its crews, which are of none. */
const isOf = (orgId: string) => sql`(org_id = ${orgId} OR org_id IS NULL AND kind = 'crew' AND data ->> 'org_id' = ${orgId})`

export async function takeCensus(db: Kysely<Database>, orgId: string): Promise<Census> {
  const { rows } = await sql<Census>`
    SELECT (SELECT count(*)::int FROM mechas WHERE org_id = ${orgId}) AS mechas,
           count(*) FILTER (WHERE kind = 'mecha')::int AS keys, count(*) FILTER (WHERE kind = 'mecha' AND revoked_at IS NULL)::int AS keys_not_revoked,
           count(*) FILTER (WHERE kind = 'gateway')::int AS gateways, count(*) FILTER (WHERE kind = 'gateway' AND revoked_at IS NULL)::int AS gateways_not_revoked,
           (SELECT count(*)::int FROM crews WHERE org_id = ${orgId}) AS crews,
           (SELECT count(*)::int FROM events WHERE ${isOf(orgId)}) AS events
    FROM keys WHERE org_id = ${orgId}`.execute(db)
  return rows[0]!
}

/** Waits for transactions that make a key or take a handle, and keeps others waiting until the transaction ends. */
export async function lockMakers(trx: Transaction<Database>): Promise<void> {
  await sql`LOCK TABLE mechas, keys IN SHARE ROW EXCLUSIVE MODE`.execute(trx)
}

export async function findErasure(db: Kysely<Database>, orgId: string): Promise<Erasure | undefined> {
  const { rows } = await sql<Erasure>`SELECT confirmation, counts, ended_at FROM erasures WHERE organization = ${digestOf(orgId)}`.execute(db)
  return rows[0]
}

export async function beginErasure(trx: Transaction<Database>, orgId: string, confirmation: string, counts: Census): Promise<void> {
  await sql`
    INSERT INTO erasures (organization, confirmation, counts, begun_at) VALUES (${digestOf(orgId)}, ${confirmation}, ${JSON.stringify(counts)}::jsonb, clock_timestamp())
    ON CONFLICT (organization) DO UPDATE SET confirmation = excluded.confirmation, counts = excluded.counts, begun_at = excluded.begun_at, ended_at = NULL, through = NULL`.execute(trx)
}

/** From here on something can be made for an organization of that name again. */
export async function endErasure(trx: Transaction<Database>, orgId: string, now: Date): Promise<void> {
  await sql`
    UPDATE erasures SET ended_at = ${now}, through = coalesce(pg_sequence_last_value(pg_get_serial_sequence('events', 'position')::regclass), 0)
    WHERE organization = ${digestOf(orgId)}`.execute(trx)
}

export interface Credential {
  readonly id: string
  readonly kind: CredentialKind
  readonly mecha: string | null
}

/** Some credentials that are not revoked, locked until the transaction ends. */
export async function lockNotRevoked(trx: Transaction<Database>, orgId: string, limit: number): Promise<Credential[]> {
  return trx
    .selectFrom('keys').select(['id', 'kind', 'mecha'])
    .where('org_id', '=', orgId).where('revoked_at', 'is', null)
    .orderBy('id').limit(limit).forUpdate()
    .execute()
}

export async function revokeCredentials(trx: Transaction<Database>, ids: readonly string[], now: Date, by: string, reason: string): Promise<void> {
  await trx.updateTable('keys').set({ revoked_at: now, revoked_by: by, revoke_reason: reason }).where('id', '=', sql<string>`ANY(${ids}::uuid[])`).execute()
}

/** Transactions that changed its keys, as far as the feed still has them. What it does not have is older than any replica can be behind. */
export async function findChanges(db: Kysely<Database>, orgId: string): Promise<string[]> {
  const { rows } = await sql<{ xid: string }>`SELECT DISTINCT xid::text FROM changes JOIN keys ON keys.id = changes.key_id WHERE org_id = ${orgId}`.execute(db)
  return rows.map(({ xid }) => xid)
}

/** Removes some keys with all that is of them. Returns how many. */
export async function deleteKeys(trx: Transaction<Database>, orgId: string, limit: number): Promise<number> {
  const rows = await trx.selectFrom('keys').select('id').where('org_id', '=', orgId).orderBy('id').limit(limit).forUpdate().execute()
  const ids = sql`${rows.map(({ id }) => id)}::uuid[]`
  await sql`UPDATE keys SET rotated_from = NULL WHERE rotated_from = ANY(${ids})`.execute(trx)
  await sql`UPDATE keys SET rotated_to = NULL WHERE rotated_to = ANY(${ids})`.execute(trx)
  for (const table of ['idempotency_keys', 'key_usage', 'key_refusals', 'nonces']) await sql`DELETE FROM ${sql.table(table)} WHERE key_id = ANY(${ids})`.execute(trx)
  await sql`UPDATE token_status SET key_erased_at = clock_timestamp() WHERE key_id = ANY(${ids})`.execute(trx)
  await sql`DELETE FROM keys WHERE id = ANY(${ids})`.execute(trx)
  return rows.length
}

/** Removes some Mechas. Returns how many. */
export async function deleteMechas(trx: Transaction<Database>, orgId: string, limit: number): Promise<number> {
  const { numAffectedRows } = await sql`
    DELETE FROM mechas WHERE handle = ANY(ARRAY(SELECT handle FROM mechas WHERE org_id = ${orgId} LIMIT ${limit}))`.execute(trx)
  return Number(numAffectedRows)
}

export async function deleteCrews(trx: Transaction<Database>, orgId: string): Promise<void> {
  await trx.deleteFrom('crews').where('org_id', '=', orgId).execute()
}

/** Removes the oldest events of an organization, and says whether there were any. */
export async function deleteEvents(trx: Transaction<Database>, orgId: string, limit: number): Promise<boolean> {
  await sql`SELECT set_config('mecha_keys.erase', 'on', true)`.execute(trx)
  const { numAffectedRows } = await sql`
    DELETE FROM events WHERE org_id = ${orgId}
      AND position <= (SELECT max(position) FROM (SELECT position FROM events WHERE org_id = ${orgId} ORDER BY position LIMIT ${limit}) AS oldest)`.execute(trx)
  return numAffectedRows! > 0n
}

/** Removes the events about its crews. */
export async function deleteCrewEvents(trx: Transaction<Database>, orgId: string): Promise<void> {
  await sql`SELECT set_config('mecha_keys.erase', 'on', true)`.execute(trx)
  await sql`DELETE FROM events WHERE org_id IS NULL AND kind = 'crew' AND data ->> 'org_id' = ${orgId}`.execute(trx)
}
