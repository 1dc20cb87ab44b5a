/** Issuing and rotating: the two acts that reveal a plaintext, each at most once for each key that it makes. */

import { createHash } from 'node:crypto'
import type { Settings } from '../../config.js'
import type { Metadata } from '../../db/tables.js'
import { inTransaction } from '../../db/transaction.js'
import { invalid, notFound, Problem } from '../../errors.js'
import { parseHandle } from '../../credentials/handle.js'
import { newId, publicId } from '../../credentials/id.js'
import { rotationRefusal, statusAt } from '../../credentials/status.js'
import { endOfNew, termOfNew, type ExpiryRequest, type Term } from './expiry.js'
import { audit, mint, type Caller, type ControlParts, type Minted } from '../deps.js'
import {
  findKeyVersion, findMadeBefore, insertIssue, insertRotation, lockKey, readClock, replaceSecret,
  type Issued, type KeyRecord, type MadeBefore, type Slot,
} from '../store.js'

export interface IssueRequest extends ExpiryRequest {
  readonly mecha: string
  readonly name?: string | undefined
  readonly scopes?: string[] | undefined
  readonly metadata?: Metadata | undefined
}

export interface RotateRequest extends ExpiryRequest {
  readonly overlap_seconds?: number | undefined
  readonly name?: string | undefined
  readonly scopes?: string[] | undefined
  readonly metadata?: Metadata | undefined
}

/** A key, and its plaintext: the one time that it is known. */
export interface Revealed {
  readonly key: KeyRecord
  readonly plaintext: string
  readonly now: Date
}

/**
 * Issues a key for a Mecha, which becomes the organization's own if it is nobody's and the organization may take it (`CREWS`).
 *
 * @param idempotencyKey a repeat with the same one makes no second key: see {@link revealOnce}
 * @throws Problem `not_found` (another organization's Mecha, or another crew's), `key_limit_reached`, `invalid_request`
 */
export async function issueKey(parts: ControlParts, caller: Caller, request: IssueRequest, idempotencyKey?: string): Promise<Revealed> {
  const { mecha } = request
  const { crew } = parseHandle(mecha)
  if (caller.crews && !caller.crews.includes(crew)) throw notFound()
  // A token that names crews names this one: its issuer says that it is the organization's.
  const isClaimed = caller.crews !== undefined || parts.config.CREWS === 'open'
  const { config } = parts
  const term = termOfNew(request, config)
  return revealOnce(parts, caller, mecha, { idempotencyKey, request: { act: 'issue', request } }, async (minted, slot) => {
    const limit = config.MAX_ACTIVE_KEYS_PER_MECHA
    const issued = await insertIssue(parts.db, { is_claimed: isClaimed, most_keys: limit, ...newKey(parts, caller, mecha, minted, request, term) }, slot)
    if ('key' in issued || 'before' in issued) return issued
    throw refusalOf(issued, term, config, limit)
  })
}

/**
 * Replaces a key by a successor. Both are valid until the overlap ends, which never lengthens the old key's life.
 *
 * What may be rotated, and what is inherited, is decided by what was read of the key; the successor is made if that still is so.
 *
 * @throws Problem `not_found`, `key_revoked`, `key_expired`, `key_disabled`, `key_already_rotated`, `key_limit_reached`
 */
export async function rotateKey(parts: ControlParts, caller: Caller, id: string, request: RotateRequest, idempotencyKey?: string): Promise<Revealed> {
  const { config, db } = parts
  const overlap = request.overlap_seconds ?? config.ROTATE_DEFAULT_OVERLAP
  if (overlap > config.ROTATE_MAX_OVERLAP)
    throw invalid('body.overlap_seconds', 'maximum', `must be at most ${config.ROTATE_MAX_OVERLAP}`)
  const find = async () => {
    const found = await findKeyVersion(db, caller, id)
    if (!found) throw notFound()
    return found
  }
  let old = await find()
  const mecha = old.key.mecha!
  return revealOnce(parts, caller, mecha, { idempotencyKey, request: { act: 'rotate', id, request } }, async (minted, slot) => {
    const refusal = rotationRefusal(old.key, old.now)
    if (refusal) {
      // The request that this one repeats has rotated the key.
      const before = slot && (await findMadeBefore(db, slot.digest))
      if (before) return { before }
      throw cannotRotate(refusal, old.key)
    }
    const term = termOfNew(request, config, old.key.expires_at ? lifeOf(old.key) : undefined)
    // A rotation may pass the limit while its overlap lasts; a chain of rotations cannot pass it without end.
    const limit = 2 * config.MAX_ACTIVE_KEYS_PER_MECHA
    const issued = await insertRotation(db, {
      old_id: id, old_version: old.version, old_public_id: publicId('mecha', id), overlap_seconds: overlap, most_keys: limit, key_public_id: publicId('mecha', minted.id),
      ...newKey(parts, caller, mecha, minted, { ...inheritable(old.key), ...request }, term),
    }, slot)
    if ('key' in issued || 'before' in issued) return issued
    if ('endRefusedAt' in issued || issued.refused !== 'change') throw refusalOf(issued, term, config, limit)
    old = await find()
    return { before: undefined }
  })
}

/** How often a key is tried to be made while others change what it depends on. */
const ATTEMPTS = 3

/** A key that was made, or what an earlier request made under the same Idempotency-Key. Neither (`undefined`) where others were in the way at this instant. */
type Made = { readonly key: KeyRecord } | { readonly before: MadeBefore | undefined }

/**
 * Makes a key and reveals it. With an Idempotency-Key, a repeat gets the key that the first request made with a new
 * secret, for as long as the key was never used: the plaintext is not stored, so the first one cannot be replayed, and
 * a key has one living secret. (Header: draft-ietf-httpapi-idempotency-key-header.)
 *
 * @throws Problem `idempotency_key_reused` (another request), `idempotent_key_in_use` (the key was used, or has ended)
 */
async function revealOnce(
  parts: ControlParts,
  caller: Caller,
  mecha: string,
  once: { idempotencyKey: string | undefined; request: unknown },
  make: (minted: Minted, slot: Slot | undefined) => Promise<Made>,
): Promise<Revealed> {
  const slot = once.idempotencyKey === undefined ? undefined : slotOf(parts, caller, once.idempotencyKey, once.request)
  const minted = await mint(parts, 'mecha', newId(), mecha)
  for (let attempt = 0; attempt < ATTEMPTS; attempt++) {
    const made = await make(minted, slot)
    if ('key' in made) return { key: made.key, plaintext: minted.plaintext, now: made.key.created_at }
    const { before } = made
    if (!before) continue
    if (!before.request_digest.equals(slot!.request_digest))
      throw new Problem('idempotency_key_reused', 'This Idempotency-Key came with another request before. Use a new one.')
    return revealAgain(parts, caller, mecha, before.key_id)
  }
  throw new Problem('database_unavailable', 'Others change the same at this moment. Try again.', { headers: { 'retry-after': '1' } })
}

async function revealAgain(parts: ControlParts, caller: Caller, mecha: string, id: string): Promise<Revealed> {
  const minted = await mint(parts, 'mecha', id, mecha)
  return inTransaction(parts.db, async (trx) => {
    const key = await lockKey(trx, caller, 'mecha', id)
    if (!key) throw notFound()
    const now = await readClock(trx)
    const status = statusAt(key, now)
    if (key.first_used_at || status !== 'active')
      throw new Problem('idempotent_key_in_use', `${publicId('mecha', id)} ${key.first_used_at ? 'has been used' : `is ${status}`}: it is not revealed again.`)
    const { hash, tag_root, pepper_root } = minted
    await replaceSecret(trx, id, { hash, tag_root, pepper_root })
    await audit(trx, caller, now, [{ type: 'key.secret_replaced', keyId: id, mecha }])
    return { key, plaintext: minted.plaintext, now }
  })
}

function slotOf({ config }: ControlParts, { orgId, actor }: Caller, idempotencyKey: string, request: unknown): Slot {
  const sha256 = (text: string) => createHash('sha256').update(text).digest()
  return { digest: sha256(JSON.stringify([orgId, actor, idempotencyKey])), request_digest: sha256(canonical(request)), keepSeconds: config.IDEMPOTENCY_TTL }
}

/** JSON with its members in order: a client may write the same request another way. */
function canonical(value: unknown): string {
  return JSON.stringify(value, (_name, item: unknown) =>
    typeof item === 'object' && item !== null && !Array.isArray(item)
      ? Object.fromEntries(Object.entries(item).sort(([a], [b]) => (a < b ? -1 : 1)))
      : item,
  )
}

function newKey({ config }: ControlParts, { orgId, actor, requestId, address }: Caller, mecha: string, { id, hash, tag_root, pepper_root }: Minted, { name, scopes, metadata }: Pick<IssueRequest, 'name' | 'scopes' | 'metadata'>, { endsAt, lifeSeconds }: Term) {
  return {
    key_id: id, key_hash: hash, key_tag_root: tag_root, key_pepper_root: pepper_root, of_org: orgId, of_mecha: mecha,
    key_name: name ?? null, key_scopes: scopes ?? [], key_metadata: metadata ?? {},
    ends_at: endsAt, life_seconds: lifeSeconds, longest_seconds: config.KEY_MAX_TTL ?? null, actor, request_id: requestId, address,
  }
}

function refusalOf(issued: Exclude<Issued, { readonly key: KeyRecord } | { readonly before: unknown }>, term: Term, config: Settings, limit: number): Error {
  if ('refused' in issued) return issued.refused === 'limit' ? limitReached(limit) : notFound()
  endOfNew(term, issued.endRefusedAt, config)
  return new Error('the database refuses an end that the policy allows')
}

/** What a successor has from the key before it, unless the request says otherwise. */
function inheritable({ name, scopes, metadata }: KeyRecord) {
  return { name: name ?? undefined, scopes, metadata }
}

/** Seconds that a key was given to live. */
function lifeOf({ created_at, expires_at }: KeyRecord): number {
  return (expires_at!.getTime() - created_at.getTime()) / 1000
}

function limitReached(limit: number): Problem {
  return new Problem('key_limit_reached', `The Mecha has ${limit} keys that are neither revoked nor expired, and may have no more. Revoke one first.`)
}

function cannotRotate(refusal: NonNullable<ReturnType<typeof rotationRefusal>>, old: KeyRecord): Problem {
  const why = {
    key_revoked: 'A revoked key cannot be rotated. Issue a new one.',
    key_expired: 'An expired key cannot be rotated. Issue a new one.',
    key_disabled: 'A disabled key cannot be rotated. Enable it first.',
    key_already_rotated: `The key was rotated to ${old.rotated_to && publicId('mecha', old.rotated_to)}. Rotate that one.`,
  }
  return new Problem(refusal, why[refusal])
}
