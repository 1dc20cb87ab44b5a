/** What a replay asks of the database, as its owner. */

import { sql, type Kysely, type Transaction } from 'kysely'
import type { Database } from '../../db/tables.js'
import type { CredentialKind } from '../../credentials/id.js'
import type { TrailEvent } from '../audit/follow.js'

/** Which of some events the database has: their effect is in its tables. By position, and compared, for positions can come again. */
export async function findKnown(db: Kysely<Database>, events: readonly TrailEvent[]): Promise<Set<string>> {
  const { rows } = await sql<{ id: string }>`
    SELECT position::text AS id
    FROM unnest(${events.map(({ id }) => id)}::bigint[], ${events.map(({ at }) => at)}::timestamptz[], ${events.map(({ type }) => type)}::text[], ${events.map(({ request_id }) => request_id)}::text[])
         AS recorded (position, at, type, request_id)
    JOIN events USING (position, at, type, request_id)`.execute(db)
  return new Set(rows.map(({ id }) => id))
}

/** A key as far as its end goes. */
export interface Life {
  readonly id: string
  readonly kind: CredentialKind
  readonly org_id: string | null
  readonly mecha: string | null
  readonly enabled: boolean
  readonly expires_at: Date | null
  readonly revoked_at: Date | null
}

export async function findLives(db: Kysely<Database>, ids: readonly string[]): Promise<Life[]> {
  return db
    .selectFrom('keys').select(['id', 'kind', 'org_id', 'mecha', 'enabled', 'expires_at', 'revoked_at'])
    .where('id', '=', sql<string>`ANY(${ids}::uuid[])`)
    .execute()
}

/** As {@link findLives}, locked until the transaction ends. In the order of ids, so that two transactions that do this cannot deadlock. */
export async function lockLives(trx: Transaction<Database>, ids: readonly string[]): Promise<Life[]> {
  return trx
    .selectFrom('keys').select(['id', 'kind', 'org_id', 'mecha', 'enabled', 'expires_at', 'revoked_at'])
    .where('id', '=', sql<string>`ANY(${ids}::uuid[])`)
    .orderBy('id').forUpdate()
    .execute()
}

/** How a key is to end: what is not to change stays as it is. */
export interface EndedLife {
  readonly id: string
  readonly enabled: boolean
  readonly expires_at: Date | null
  readonly revoked_at: Date | null
  readonly revoked_by: string | null
  readonly revoke_reason: string | null
}

export async function updateLives(trx: Transaction<Database>, lives: readonly EndedLife[]): Promise<void> {
  if (lives.length === 0) return
  await sql`
    UPDATE keys SET enabled = ended.enabled, expires_at = ended.expires_at, revoked_at = ended.revoked_at, revoked_by = ended.revoked_by, revoke_reason = ended.revoke_reason
    FROM jsonb_to_recordset(${JSON.stringify(lives)}::jsonb) AS ended
      (id uuid, enabled boolean, expires_at timestamptz, revoked_at timestamptz, revoked_by text, revoke_reason text)
    WHERE keys.id = ended.id`.execute(trx)
}

/** From now on positions are above this one: those that a restore undid are not given again. */
export async function passPosition(db: Kysely<Database>, position: string): Promise<void> {
  await sql`
    SELECT setval(sequence, ${position}::bigint)
    FROM (SELECT pg_get_serial_sequence('events', 'position')::regclass AS sequence) AS its
    WHERE coalesce(pg_sequence_last_value(sequence), 0) < ${position}::bigint`.execute(db)
}

/** Until when the database had dropped events when it was backed up; `undefined`: it had dropped none. */
export async function findExpired(db: Kysely<Database>): Promise<Date | undefined> {
  const { rows } = await sql<{ before: Date }>`SELECT before FROM events_expired`.execute(db)
  return rows[0]?.before
}

/** Up to which positions events of which organizations were erased, by the SHA-256 of their ids. */
export async function findErased(db: Kysely<Database>): Promise<Map<string, bigint>> {
  const { rows } = await sql<{ organization: string; through: string }>`
    SELECT encode(organization, 'hex') AS organization, through::text FROM erasures WHERE ended_at IS NOT NULL`.execute(db)
  return new Map(rows.map(({ organization, through }) => [organization, BigInt(through)]))
}

/** Organizations that the database has something of, among some that are named by the SHA-256 of their ids. */
export async function findOrganizations(db: Kysely<Database>, digests: readonly string[]): Promise<{ org_id: string; digest: string }[]> {
  const { rows } = await sql<{ org_id: string; digest: string }>`
    SELECT org_id, digest FROM (SELECT org_id FROM keys WHERE org_id IS NOT NULL UNION SELECT org_id FROM mechas UNION SELECT org_id FROM crews) AS organizations,
           encode(sha256(convert_to(org_id, 'UTF8')), 'hex') AS digest
    WHERE digest = ANY(${digests}::text[]) ORDER BY org_id`.execute(db)
  return rows
}

/** The credentials of an organization that are not revoked. */
export async function findNotRevoked(db: Kysely<Database>, orgId: string): Promise<{ id: string; kind: CredentialKind }[]> {
  return db.selectFrom('keys').select(['id', 'kind']).where('org_id', '=', orgId).where('revoked_at', 'is', null).execute()
}

export async function hasEvents(db: Kysely<Database>): Promise<boolean> {
  const { rows } = await sql<{ has: boolean }>`SELECT EXISTS (SELECT FROM events) AS has`.execute(db)
  return rows[0]!.has
}

/** Signing keys that a rotation had given up as compromised, and that are there again. */
export async function deleteCompromised(trx: Transaction<Database>, kids: readonly string[]): Promise<string[]> {
  await sql`SELECT pg_advisory_xact_lock(20828)`.execute(trx)
  const rows = await trx.deleteFrom('signing_keys').where('kid', '=', sql<string>`ANY(${kids}::text[])`).returning('kid').execute()
  return rows.map(({ kid }) => kid)
}

/** Accepts the database as it is: from here on it is answered from. */
export async function acceptDatabase(trx: Transaction<Database>, by: string): Promise<void> {
  await sql`SELECT accept_database(${by})`.execute(trx)
}
