/**
 * Idempotency-Keys (draft-ietf-httpapi-idempotency-key-header). A repeat gets the key that the first request made, with a new secret, for
 * as long as that key was never used: the plaintext is not stored, so the first answer cannot be sent again, and a key has one
 * living secret.
 */

import { createHash } from 'node:crypto'
import { inTransaction } from '../../db/transaction.js'
import { notFound, Problem } from '../../errors.js'
import { publicId } from '../../credentials/id.js'
import { statusAt } from '../../credentials/status.js'
import { recordEvents } from '../audit/events.js'
import { readClock } from '../database-clock.js'
import type { Caller, ControlDeps } from '../deps.js'
import type { MadeBefore, Slot } from './issue-store.js'
import { mint } from './mint.js'
import type { Revealed } from './new-key.js'
import { lockKey, replaceSecret } from './store.js'

/** The slot that a request asks for; `undefined` where it has no Idempotency-Key. */
export function slotOf({ config }: ControlDeps, { orgId, actor }: Caller, idempotencyKey: string | undefined, request: unknown): Slot | undefined {
  if (idempotencyKey === undefined) return undefined
  const sha256 = (text: string) => createHash('sha256').update(text).digest()
  return { digest: sha256(JSON.stringify([orgId, actor, idempotencyKey])), request_digest: sha256(canonical(request)), keepSeconds: config.IDEMPOTENCY_TTL }
}

/**
 * Reveals the key that an earlier request with the same Idempotency-Key has made.
 *
 * @throws Problem `idempotency_key_reused` (it was another request), `idempotent_key_in_use` (the key was used, or has ended)
 */
export async function revealAgain(deps: ControlDeps, caller: Caller, mecha: string, { key_id: id, request_digest }: MadeBefore, slot: Slot): Promise<Revealed> {
  if (!request_digest.equals(slot.request_digest))
    throw new Problem('idempotency_key_reused', 'This Idempotency-Key came with another request before. Use a new one.')
  const minted = await mint(deps, 'mecha', id, mecha)
  return inTransaction(deps.db, async (trx) => {
    const key = await lockKey(trx, caller, 'mecha', id)
    if (!key) throw notFound()
    const now = await readClock(trx)
    const status = statusAt(key, now)
    if (key.first_used_at || status !== 'active')
      throw new Problem('idempotent_key_in_use', `${publicId('mecha', id)} ${key.first_used_at ? 'has been used' : `is ${status}`}: it is not revealed again.`)
    const { hash, tag_root, pepper_root } = minted
    await replaceSecret(trx, id, { hash, tag_root, pepper_root })
    await recordEvents(trx, caller, now, [{ type: 'key.secret_replaced', keyId: id, mecha }])
    return { key, plaintext: minted.plaintext, now }
  })
}

/** JSON with its members in order: a client may write the same request another way. */
function canonical(value: unknown): string {
  return JSON.stringify(value, (_name, item: unknown) =>
    typeof item === 'object' && item !== null && !Array.isArray(item)
      ? Object.fromEntries(Object.entries(item).sort(([a], [b]) => (a < b ? -1 : 1)))
      : item,
  )
}
