/** Rotating a key: a successor with its own secret, beside which the old key is valid until the overlap ends. */

import { invalid, notFound, Problem } from '../../errors.js'
import { newId, publicId } from '../../credentials/id.js'
import { rotationRefusal } from '../../credentials/status.js'
import type { Caller, ControlDeps } from '../deps.js'
import { termOfNew, type ExpiryRequest } from './expiry.js'
import { revealAgain, slotOf } from './idempotency.js'
import { findMadeBefore, insertRotation } from './issue-store.js'
import { mint } from './mint.js'
import { ATTEMPTS, contended, newKey, refusalOf, reveal, type KeyDetails, type Revealed } from './new-key.js'
import { findKeyVersion, type KeyRecord } from './store.js'

export interface RotateRequest extends KeyDetails, ExpiryRequest {
  readonly overlap_seconds?: number | undefined
}

/**
 * Replaces a key by a successor. Both are valid until the overlap ends, which never lengthens the old key's life.
 *
 * Whether the key may be rotated, and what its successor inherits, is decided by one version of its row. The successor is made only
 * if the row is still of that version; otherwise it is read again.
 *
 * @param idempotencyKey a repeat with the same one makes no second successor: see `idempotency.ts`
 * @throws Problem `not_found`, `key_revoked`, `key_expired`, `key_disabled`, `key_already_rotated`, `key_limit_reached`
 */
export async function rotateKey(deps: ControlDeps, caller: Caller, id: string, request: RotateRequest, idempotencyKey?: string): Promise<Revealed> {
  const { config, db } = deps
  const overlap = request.overlap_seconds ?? config.ROTATE_DEFAULT_OVERLAP
  if (overlap > config.ROTATE_MAX_OVERLAP) throw invalid('body.overlap_seconds', 'maximum', `must be at most ${config.ROTATE_MAX_OVERLAP}`)
  // A rotation may pass the limit while its overlap lasts; a chain of rotations cannot pass it without end.
  const limit = 2 * config.MAX_ACTIVE_KEYS_PER_MECHA
  let old = await findOld(deps, caller, id)
  const mecha = old.key.mecha!
  const slot = slotOf(deps, caller, idempotencyKey, { act: 'rotate', id, request })
  const minted = await mint(deps, 'mecha', newId(), mecha)
  for (let attempt = 0; attempt < ATTEMPTS; attempt++) {
    const refusal = rotationRefusal(old.key, old.now)
    if (refusal) {
      // It may be refused because the request that this one repeats has rotated the key.
      const before = slot && (await findMadeBefore(db, slot.digest))
      if (before) return revealAgain(deps, caller, mecha, before, slot)
      throw cannotRotate(refusal, old.key)
    }
    const term = termOfNew(request, config, old.key.expires_at ? lifeOf(old.key) : undefined)
    const issued = await insertRotation(db, {
      old_id: id, old_version: old.version, old_public_id: publicId('mecha', id), overlap_seconds: overlap, most_keys: limit, key_public_id: publicId('mecha', minted.id),
      ...newKey(deps, caller, mecha, minted, { ...inheritable(old.key), ...request }, term),
    }, slot)
    if ('key' in issued) return reveal(issued.key, minted)
    if ('before' in issued) {
      if (issued.before) return revealAgain(deps, caller, mecha, issued.before, slot!)
      continue
    }
    if ('endRefusedAt' in issued || issued.refused !== 'change') throw refusalOf(issued, term, config, limit)
    old = await findOld(deps, caller, id)
  }
  throw contended()
}

async function findOld({ db }: ControlDeps, caller: Caller, id: string) {
  const found = await findKeyVersion(db, caller, id)
  if (!found) throw notFound()
  return found
}

/** What a successor inherits of the old key, unless the request says otherwise. */
function inheritable({ name, scopes, metadata }: KeyRecord) {
  return { name: name ?? undefined, scopes, metadata }
}

/** Seconds that a key was given to live. */
function lifeOf({ created_at, expires_at }: KeyRecord): number {
  return (expires_at!.getTime() - created_at.getTime()) / 1000
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
