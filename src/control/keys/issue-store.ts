/** Issuing and rotating in the database: each is one call of a SQL function, which is a transaction by itself. */

import { CompiledQuery, sql, type Kysely } from 'kysely'
import { preparedMark } from '../../db/pool.js'
import type { Database, Metadata } from '../../db/tables.js'
import { againAfterConflict } from '../../db/transaction.js'
import { NEVER_USED, type KeyRecord } from './store.js'

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
  /** As `findKeyVersion` of `store.ts` gives it. */
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
