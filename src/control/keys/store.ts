/** What the control plane asks of the database. The hash never leaves through here. */

import { CompiledQuery, sql, type ExpressionBuilder, type Kysely, type Transaction, type Updateable } from 'kysely'
import { HISTORY } from '../db/history.js'
import { preparedMark } from '../db/pool.js'
import type { Database, EventRow, KeyRefusalsTable, KeyRow, KeysTable, Metadata, NewKeyRow } from '../db/tables.js'
import { againAfterConflict } from '../db/transaction.js'
import { parseHandle } from '../credentials/handle.js'
import type { CredentialKind } from '../credentials/id.js'
import type { KeyStatus } from '../credentials/status.js'

/** What an operator can reach: their organization, and within it some crews or all. */
export interface Reach {
  /** `null`: what belongs to no organization, which only the command line can reach. */
  readonly orgId: string | null
  readonly crews: readonly string[] | undefined
}

/** A key as the control plane knows it. */
export type KeyRecord = Omit<KeyRow, 'hash' | 'tag_root' | 'pepper_root' | 'crew'> & {
  readonly first_used_at: Date | null
  readonly last_used_at: Date | null
  /** A gateway's id (UUID). */
  readonly last_used_by: string | null
  readonly last_refused_at: Date | null
  readonly last_refused_code: KeyRefusalsTable['last_refused_code'] | null
}

/** What a listing is ordered by, the latest first. */
export type KeyOrder = 'created_at' | 'expires_at'

/** Where a page of a listing ended. */
export interface Cursor {
  readonly by: KeyOrder
  readonly at: Date
  readonly id: string
}

const KEY_COLUMNS = [
  'id', 'kind', 'org_id', 'mecha', 'name', 'scopes', 'metadata', 'enabled', 'created_at', 'created_by', 'expires_at',
  'revoked_at', 'revoked_by', 'revoke_reason', 'rotated_from', 'rotated_to',
] as const
const USE_COLUMNS = ['first_used_at', 'last_used_at', 'last_used_by', 'last_refused_at', 'last_refused_code'] as const
const NEVER_USED = { first_used_at: null, last_used_at: null, last_used_by: null, last_refused_at: null, last_refused_code: null }

const CLOCK = sql<Date>`date_trunc('milliseconds', clock_timestamp())`

/** The database's clock, at the millisecond that it stores. Taken after a lock: a transaction's own time is older. */
export async function readClock(db: Kysely<Database>): Promise<Date> {
  const { rows } = await sql<{ now: Date }>`SELECT ${CLOCK} AS now`.execute(db)
  return rows[0]!.now
}

// ── Mechas ──

/** The database's clock once a Mecha is held, and how many of its keys are neither revoked nor expired by it. */
export interface HeldMecha {
  readonly now: Date
  readonly living: number
}

/** Holds a Mecha until the transaction ends. Whoever adds or ends its keys together holds it first. */
export async function lockMecha(trx: Transaction<Database>, handle: string, orgId: string): Promise<boolean> {
  const row = await trx
    .selectFrom('mechas').select('handle').where('handle', '=', handle).where('org_id', '=', orgId)
    .forUpdate().executeTakeFirst()
  return row !== undefined
}

/** Exact for a Mecha that is held. */
export async function countLivingKeys(db: Kysely<Database>, mecha: string): Promise<HeldMecha> {
  const { rows } = await sql<HeldMecha>`
    WITH clock AS MATERIALIZED (SELECT ${CLOCK} AS now)
    SELECT now, count_living_keys(${mecha}, now) AS living FROM clock`.execute(db)
  return rows[0]!
}

// ── Crews ──

export interface CrewRecord {
  readonly crew: string
  readonly org_id: string
  readonly reserved_at: Date
}

export async function findCrew(db: Kysely<Database>, crew: string): Promise<CrewRecord | undefined> {
  return db.selectFrom('crews').selectAll().where('crew', '=', crew).executeTakeFirst()
}

export async function listCrews(db: Kysely<Database>): Promise<CrewRecord[]> {
  return db.selectFrom('crews').selectAll().orderBy('crew').execute()
}

/** Waits for whoever takes a handle, and makes others wait until the transaction ends. */
export async function lockNewMechas(trx: Transaction<Database>): Promise<void> {
  await sql`LOCK TABLE mechas IN SHARE ROW EXCLUSIVE MODE`.execute(trx)
}

export async function insertCrew(trx: Transaction<Database>, crew: string, orgId: string): Promise<void> {
  await trx.insertInto('crews').values({ crew, org_id: orgId }).execute()
}

export async function deleteCrew(trx: Transaction<Database>, crew: string): Promise<CrewRecord | undefined> {
  return trx.deleteFrom('crews').where('crew', '=', crew).returningAll().executeTakeFirst()
}

/** Organizations other than this one that have Mechas in a crew. */
export async function countMechasOfOthers(db: Kysely<Database>, crew: string, orgId: string): Promise<{ org_id: string; mechas: number }[]> {
  return db
    .selectFrom('mechas')
    .select(['org_id', sql<number>`count(*)::int`.as('mechas')])
    .where(sql<string>`split_part(handle, '^', 2)`, '=', crew).where('org_id', '!=', orgId)
    .groupBy('org_id').orderBy('org_id')
    .execute()
}

// ── Keys ──

/** A key that is to be made, under the names that `issue_key` and `rotate_key` have for it (`migrations/0017_issue.sql`). */
interface NewKey {
  readonly key_id: string
  readonly key_hash: string
  readonly key_tag_root: string
  readonly key_pepper_root: string
  readonly of_org: string
  readonly of_mecha: string
  readonly key_name: string | null
  readonly key_scopes: readonly string[]
  readonly key_metadata: Metadata
  /** Most keys of the Mecha that are neither revoked nor expired, this one included. */
  readonly most_keys: number
  readonly ends_at: Date | null
  readonly life_seconds: number | null
  readonly longest_seconds: number | null
  readonly actor: string
  readonly request_id: string
  readonly address: string
}

export interface NewIssue extends NewKey {
  /** Whether it may take a handle in a crew that is reserved for nobody. */
  readonly is_claimed: boolean
}

export interface NewRotation extends NewKey {
  readonly old_id: string
  /** As {@link findKeyVersion} gives it. */
  readonly old_version: string
  readonly old_public_id: string
  readonly key_public_id: string
  readonly overlap_seconds: number
}

/**
 * A new key, or why there is none: its Idempotency-Key's slot is another's, its Mecha is not to be had or has no room, the key before it has
 * changed, or a key that is made now cannot have that end.
 */
export type Issued = { readonly key: KeyRecord } | { readonly before: MadeBefore | undefined } | { readonly refused: 'mecha' | 'limit' | 'change' } | { readonly endRefusedAt: Date }

const KEY_ARGUMENTS = [
  'key_id', 'key_hash', 'key_tag_root', 'key_pepper_root', 'of_org', 'of_mecha', 'key_name', 'key_scopes', 'key_metadata', 'most_keys', 'ends_at', 'life_seconds',
  'longest_seconds', 'actor', 'request_id', 'address', 'slot', 'request', 'keep_seconds',
] as const
const ISSUE_ARGUMENTS = [...KEY_ARGUMENTS, 'is_claimed'] as const
const ROTATION_ARGUMENTS = [...KEY_ARGUMENTS, 'old_id', 'old_version', 'old_public_id', 'key_public_id', 'overlap_seconds'] as const
const REFUSALS: Readonly<Record<string, 'mecha' | 'limit' | 'change'>> = { MK404: 'mecha', MK409: 'limit', MK412: 'change' }

const callOf = (name: string, args: readonly string[]) => `SELECT * FROM ${name}(${args.map((arg, i) => `${arg} => $${i + 1}`).join()}) ${preparedMark(name)}`
const ISSUE = callOf('issue_key', ISSUE_ARGUMENTS)
const ROTATE = callOf('rotate_key', ROTATION_ARGUMENTS)

/** Issues a key in one statement, which is a transaction by itself. */
export async function insertIssue(db: Kysely<Database>, issue: NewIssue, slot: Slot | undefined): Promise<Issued> {
  const given = { ...issue, ...asArguments(issue, slot) }
  return makeKey(db, CompiledQuery.raw(ISSUE, ISSUE_ARGUMENTS.map((name) => given[name])), issue)
}

/** Makes a successor of a key, and ends that one with its overlap, in one statement as well. */
export async function insertRotation(db: Kysely<Database>, rotation: NewRotation, slot: Slot | undefined): Promise<Issued> {
  const given = { ...rotation, ...asArguments(rotation, slot) }
  return makeKey(db, CompiledQuery.raw(ROTATE, ROTATION_ARGUMENTS.map((name) => given[name])), rotation, rotation.old_id)
}

function asArguments({ key_metadata }: NewKey, slot: Slot | undefined) {
  return { key_metadata: JSON.stringify(key_metadata), slot: slot?.digest, request: slot?.request_digest, keep_seconds: slot?.keepSeconds }
}

async function makeKey(db: Kysely<Database>, call: CompiledQuery, key: NewKey, rotatedFrom: string | null = null): Promise<Issued> {
  try {
    const { rows } = await againAfterConflict(() => db.executeQuery<{ made_at: Date | null; key_ends_at: Date | null; slot_key: string | null; slot_request: Buffer | null }>(call))
    const { made_at, key_ends_at, slot_key, slot_request } = rows[0]!
    if (!made_at) return { before: slot_key === null ? undefined : { key_id: slot_key, request_digest: slot_request! } }
    return { key: newRecord(key, made_at, key_ends_at, rotatedFrom) }
  } catch (error) {
    const { code, detail } = error as { code?: string; detail?: string }
    if (code === 'MK400') return { endRefusedAt: new Date(Number(detail)) }
    const refused = code === undefined ? undefined : REFUSALS[code]
    if (refused) return { refused }
    throw error
  }
}

/** The row as it is just after it was made. */
function newRecord(key: NewKey, created_at: Date, expires_at: Date | null, rotated_from: string | null): KeyRecord {
  return {
    id: key.key_id, kind: 'mecha', org_id: key.of_org, mecha: key.of_mecha, name: key.key_name, scopes: [...key.key_scopes], metadata: key.key_metadata,
    enabled: true, created_at, created_by: key.actor, expires_at, revoked_at: null, revoked_by: null, revoke_reason: null, rotated_from, rotated_to: null, ...NEVER_USED,
  }
}

export async function insertKey(trx: Transaction<Database>, row: NewKeyRow): Promise<KeyRecord> {
  const key = await trx.insertInto('keys').values(row).returning(KEY_COLUMNS).executeTakeFirstOrThrow()
  return { ...key, ...NEVER_USED }
}

export async function findKey(db: Kysely<Database>, reach: Reach, kind: CredentialKind, id: string): Promise<KeyRecord | undefined> {
  return selectKeys(db)
    .where('id', '=', id).where(isReachable(reach, kind))
    .executeTakeFirst()
}

/** A key as it is now, by the database's clock, and which version of it that is: what changes it makes another one. */
export async function findKeyVersion(db: Kysely<Database>, reach: Reach, id: string): Promise<{ key: KeyRecord; version: string; now: Date } | undefined> {
  const row = await selectKeys(db)
    .select([sql<string>`keys.xmin::text`.as('version'), CLOCK.as('now')])
    .where('id', '=', id).where(isReachable(reach, 'mecha'))
    .executeTakeFirst()
  if (!row) return undefined
  const { version, now, ...key } = row
  return { key, version, now }
}

/** Reads a key and holds it until the transaction ends. */
export async function lockKey(trx: Transaction<Database>, reach: Reach, kind: CredentialKind, id: string): Promise<KeyRecord | undefined> {
  const held = await trx
    .selectFrom('keys').select('id').where('id', '=', id).where(isReachable(reach, kind))
    .forUpdate().executeTakeFirst()
  // Read after the lock is held: whether the key has been used is in another table, which the lock does not cover.
  return held && findKey(trx, reach, kind, id)
}

export interface ListFilter {
  readonly kind: CredentialKind
  readonly mecha?: string | undefined
  readonly status?: KeyStatus | undefined
  readonly limit: number
  readonly after?: Cursor | undefined
}

/** Keys, with what is known of their use. */
function selectKeys(db: Pick<Kysely<Database>, 'selectFrom'>) {
  return db
    .selectFrom('keys')
    .leftJoin('key_usage', 'key_usage.key_id', 'keys.id')
    .leftJoin('key_refusals', 'key_refusals.key_id', 'keys.id')
    .select([...KEY_COLUMNS, ...USE_COLUMNS])
}

/**
 * Keys that have expired are in the order in which they did: whether a key has is a matter of the clock, and so no index knows the newest
 * of them. Of one Mecha no more than its limit are alive, so there the newest are found among the others.
 */
export function orderOfKeys({ status, mecha }: Pick<ListFilter, 'status' | 'mecha'>): KeyOrder {
  return status === 'expired' && mecha === undefined ? 'expires_at' : 'created_at'
}

/**
 * The latest first. A row's place, once it has one, never changes: pages neither skip nor repeat what was there before.
 *
 * Crew by crew, for an index has the keys of each in order, and PostgreSQL merges what is in order.
 */
export async function listKeys(db: Kysely<Database>, reach: Reach, filter: ListFilter): Promise<{ keys: KeyRecord[]; now: Date }> {
  const now = await readClock(db)
  const { kind, mecha, status, limit, after } = filter
  const by = after?.by ?? orderOfKeys(filter)
  const crews = crewsAskedOf(reach, mecha)
  if (crews?.length === 0) return { keys: [], now }
  const found = (crews ?? [undefined]).map((crew) =>
    db
      .selectFrom('keys').select(KEY_COLUMNS)
      .where(isReachable({ orgId: reach.orgId, crews: crew === undefined ? undefined : [crew] }, kind))
      .$if(mecha !== undefined, (query) => query.where('mecha', '=', mecha!))
      .$if(status !== undefined, (query) => query.where(hasStatus(status!, now)))
      .$if(after !== undefined, (query) => query.where((eb) => eb(eb.refTuple(by, 'id'), '<', eb.tuple(after!.at, after!.id))))
      .orderBy(by, 'desc').orderBy('id', 'desc').limit(limit))
    .map((ofOne) => db.selectFrom(ofOne.as('keys')).selectAll())
  const page = found.reduce((all, one) => all.unionAll(one)).orderBy(by, 'desc').orderBy('id', 'desc').limit(limit)
  // Under the name of the table, whose place it takes.
  const keys = await selectKeys(db.with('keys', () => page)).orderBy(by, 'desc').orderBy('id', 'desc').execute()
  return { keys, now }
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
export async function revokeKey(db: Kysely<Database>, { orgId, crews }: Reach, kind: CredentialKind, id: string, by: { readonly actor: string; readonly reason: string | null; readonly requestId: string; readonly address: string }): Promise<boolean> {
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
 * One key for each transaction that has lately revoked keys of a Mecha: who has applied all changes of these has applied the
 * revocation of every key. What is no longer in the feed is older than any replica can be behind.
 */
export async function findLatelyRevoked(db: Kysely<Database>, mecha: string): Promise<string[]> {
  const { rows } = await sql<{ id: string }>`
    SELECT DISTINCT ON (xid) keys.id FROM keys JOIN changes ON changes.key_id = keys.id
    WHERE mecha = ${mecha} AND revoked_at > now() - interval '1 hour'`.execute(db)
  return rows.map((row) => row.id)
}

// ── Replicas ──

/** What has to be applied of some keys, and in which history that was read. */
export interface FoundChange {
  readonly history: string
  /** Transactions. One that is no longer in the feed is older than any replica can be behind. */
  readonly xids: string[]
  /** How many of the keys are revoked. */
  readonly revoked: number
}

export async function findChange(db: Kysely<Database>, keyIds: readonly string[]): Promise<FoundChange> {
  const { rows } = await sql<FoundChange>`
    SELECT ${sql.raw(HISTORY)} AS history,
           ARRAY(SELECT DISTINCT xid::text FROM changes WHERE key_id = ANY(${keyIds}::uuid[])) AS xids,
           (SELECT count(*)::int FROM keys WHERE id = ANY(${keyIds}::uuid[]) AND revoked_at IS NOT NULL) AS revoked`.execute(db)
  return rows[0]!
}

export interface ReplicaRow {
  readonly id: string
  /** `null` in rows of the previous release, as is the bound. */
  readonly history: string | null
  readonly bound_ms: number | null
  /** What changes with every confirmation. */
  readonly mark: string
  /** Which of the transactions that were asked for it has not applied. */
  readonly unseen: readonly string[]
}

export interface ReplicasReading {
  readonly history: string
  readonly replicas: readonly ReplicaRow[]
  /** Which of those that were asked for have said goodbye. */
  readonly farewells: readonly string[]
  /** Whether the database went back: nobody can say then what was applied. */
  readonly is_held: boolean
}

/** Every row of `replicas`. The time in a row of the previous release stands for its beat, and is compared with no clock. */
export async function readReplicas(db: Kysely<Database>, xids: readonly string[], known: readonly string[]): Promise<ReplicasReading> {
  const { rows } = await sql<ReplicasReading>`
    SELECT ${sql.raw(HISTORY)} AS history,
           (SELECT coalesce(json_agg(json_build_object(
              'id', id, 'history', history, 'bound_ms', bound_ms, 'mark', concat_ws(' ', beat, history, snapshot, CASE WHEN bound_ms IS NULL THEN seen_at END),
              'unseen', ARRAY(SELECT xid::text FROM unnest(${xids}::xid8[]) AS xid WHERE NOT pg_visible_in_snapshot(xid, snapshot)))), '[]') FROM replicas) AS replicas,
           ARRAY(SELECT id FROM farewells WHERE id = ANY(${known}::uuid[])) AS farewells,
           restore_hold() IS NOT NULL AS is_held`.execute(db)
  return rows[0]!
}

// ── Idempotency ──

/** What an earlier request made under an Idempotency-Key. */
export interface MadeBefore {
  readonly key_id: string
  readonly request_digest: Buffer
}

/** An Idempotency-Key's slot, as a request asks for it. */
export interface Slot {
  readonly digest: Buffer
  readonly request_digest: Buffer
  readonly keepSeconds: number
}

/** The slot of an Idempotency-Key that an earlier request has taken. */
export async function findMadeBefore(db: Kysely<Database>, digest: Buffer): Promise<MadeBefore | undefined> {
  return db
    .selectFrom('idempotency_keys').select(['key_id', 'request_digest'])
    .where('digest', '=', digest).where('expires_at', '>', sql<Date>`now()`)
    .executeTakeFirst()
}

// ── Events ──

export type NewEvent = Pick<EventRow, 'at' | 'type' | 'key_id' | 'kind' | 'mecha' | 'actor' | 'request_id' | 'address' | 'data'>

/**
 * Writes events, as the last act of a transaction. Those of one organization are written one transaction at a time
 * from here to the commit, so that positions are in the order of commits and a reader who has seen one has missed
 * none before it.
 */
export async function insertEvents(trx: Transaction<Database>, orgId: string | null, events: readonly NewEvent[]): Promise<void> {
  if (events.length === 0) return
  // One statement for the lock and the rows: the others of this organization wait for as long as it is held.
  await sql`
    WITH held AS MATERIALIZED (SELECT pg_advisory_xact_lock(hashtextextended(${orgId ?? ''}, 20826)))
    INSERT INTO events (at, type, org_id, key_id, kind, mecha, actor, request_id, address, data)
    SELECT at, type, ${orgId}, key_id, kind, mecha, actor, request_id, address, data
    FROM held, jsonb_to_recordset(${JSON.stringify(events)}::jsonb) AS event
      (at timestamptz, type text, key_id uuid, kind text, mecha text, actor text, request_id text, address text, data jsonb)`.execute(trx)
}

export interface EventFilter {
  readonly mecha?: string | undefined
  readonly keyId?: string | undefined
  readonly type?: string | undefined
  readonly actor?: string | undefined
  readonly since?: Date | undefined
  /** Exclusive. */
  readonly until?: Date | undefined
  readonly after: string
  readonly limit: number
}

/** Oldest first, from a position on. */
export async function listEvents(db: Kysely<Database>, reach: Reach & { orgId: string }, filter: EventFilter): Promise<EventRow[]> {
  const { mecha, keyId, type, actor, since, until, after, limit } = filter
  const crews = crewsAskedOf(reach, mecha)
  const { first, last } = await positionsOf(db, reach.orgId, filter)
  const matching = db
    .selectFrom('events').selectAll()
    .where('org_id', '=', reach.orgId)
    .where('position', '>', after)
    .$if(first !== null, (query) => query.where('position', '>', first!))
    .$if(last !== null, (query) => query.where('position', '<', last!))
    .$if(mecha !== undefined, (query) => query.where('mecha', '=', mecha!))
    .$if(keyId !== undefined, (query) => query.where('key_id', '=', keyId!))
    .$if(type !== undefined, (query) => query.where('type', '=', type!))
    .$if(actor !== undefined, (query) => query.where('actor', '=', actor!))
    .$if(since !== undefined, (query) => query.where('at', '>=', since!))
    .$if(until !== undefined, (query) => query.where('at', '<', until!))
    .orderBy('position').limit(limit)
  if (!crews) return matching.execute()
  // Crew by crew, for an index has the events of each in order. In one plan for all crews: there is one for each partition as it is.
  return db
    .selectFrom(sql<{ crew: string }>`unnest(${crews}::text[])`.as('crew'))
    .innerJoinLateral(matching.where(sql<string>`split_part(mecha, '^', 2)`, '=', sql<string>`crew`).as('events'), (join) => join.onTrue())
    .selectAll('events')
    .orderBy('position').limit(limit)
    .execute()
}

/**
 * Positions between which all events of a time are: times are in the order of positions, but for transactions beside one another and clocks
 * that were set back, by less than a day. Without them a page would begin with a walk past all events before that time, or end with one.
 */
async function positionsOf(db: Kysely<Database>, orgId: string, { since, until }: Pick<EventFilter, 'since' | 'until'>): Promise<{ first: string | null; last: string | null }> {
  if (since === undefined && until === undefined) return { first: null, last: null }
  const { rows } = await sql<{ first: string | null; last: string | null }>`
    SELECT (SELECT position FROM events WHERE org_id = ${orgId} AND at < ${since}::timestamptz - interval '1 day' ORDER BY at DESC LIMIT 1) AS first,
           (SELECT position FROM events WHERE org_id = ${orgId} AND at > ${until}::timestamptz + interval '1 day' ORDER BY at LIMIT 1) AS last`.execute(db)
  return rows[0]!
}

// ── Conditions ──

type Keys = ExpressionBuilder<Database, 'keys'>

function isReachable({ orgId, crews }: Reach, kind: CredentialKind) {
  return (eb: Keys) =>
    eb.and([
      orgId === null ? eb('org_id', 'is', null) : eb('org_id', '=', orgId),
      eb('kind', '=', kind),
      ...(crews ? [eb('crew', 'in', nonEmpty(crews))] : []),
    ])
}

/** Which of the operator's crews something can be of, each of them once; `undefined`: any. */
function crewsAskedOf({ crews }: Reach, mecha: string | undefined): string[] | undefined {
  return crews && [...new Set(crews)].filter((crew) => mecha === undefined || crew === parseHandle(mecha).crew)
}

/** `IN ()` is not SQL. No crew has an empty name, so this matches nothing, which is what an empty list means. */
function nonEmpty(crews: readonly string[]): string[] {
  return crews.length > 0 ? [...crews] : ['']
}

function isLiving(now: Date) {
  return (eb: Keys) => eb.and([eb('revoked_at', 'is', null), eb.or([eb('expires_at', 'is', null), eb('expires_at', '>', now)])])
}

/** `statusAt` of `credentials/status.ts`, in SQL that the indexes understand. Tests hold the two together. */
function hasStatus(status: KeyStatus, now: Date) {
  return (eb: Keys) => {
    if (status === 'revoked') return eb('revoked_at', 'is not', null)
    if (status === 'expired') return eb.and([eb('revoked_at', 'is', null), eb('expires_at', '<=', now)])
    return eb.and([isLiving(now)(eb), status === 'active' ? eb.ref('enabled') : eb.not('enabled')])
  }
}
