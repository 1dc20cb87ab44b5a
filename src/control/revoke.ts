/** Revocation: final, idempotent, recorded. */

import { inTransaction } from '../db/transaction.js'
import { notFound } from '../errors.js'
import type { CredentialKind } from '../key/id.js'
import { audit, type Author, type Caller, type ControlParts, type GatewayCaller } from './parts.js'
import { lockKey, lockMecha, readClock, revokeKey, revokeKeysOfMecha, type KeyRecord } from './store.js'

/**
 * Revokes a key or a gateway credential. A second revocation changes nothing: the first one's time and reason stay.
 *
 * @throws Problem `not_found`
 */
export async function revoke(
  { db }: ControlParts,
  caller: Caller | GatewayCaller,
  kind: CredentialKind,
  id: string,
  reason?: string,
): Promise<{ key: KeyRecord; now: Date }> {
  return inTransaction(db, async (trx) => {
    const key = await lockKey(trx, caller, kind, id)
    if (!key) throw notFound()
    const now = await readClock(trx)
    if (key.revoked_at) return { key, now }
    const revocation = revocationBy(caller, now, reason)
    await revokeKey(trx, id, revocation)
    const type = kind === 'mecha' ? 'key.revoked' : 'gateway.revoked'
    await audit(trx, caller, now, [{ type, keyId: id, mecha: key.mecha, data: { reason: reason ?? null } }])
    return { key: { ...key, ...revocation }, now }
  })
}

/**
 * The kill switch: revokes every key of a Mecha that has not ended yet. Issuing for it waits, so none slips through.
 *
 * @returns the ids (UUIDs) of the keys that this call revoked
 * @throws Problem `not_found`
 */
export async function revokeAllOfMecha({ db }: ControlParts, caller: Caller, mecha: string, reason?: string): Promise<string[]> {
  const crew = mecha.slice(mecha.indexOf('^') + 1)
  if (caller.crews && !caller.crews.includes(crew)) throw notFound()
  return inTransaction(db, async (trx) => {
    if (!(await lockMecha(trx, mecha, caller.orgId))) throw notFound()
    const now = await readClock(trx)
    const ids = await revokeKeysOfMecha(trx, mecha, revocationBy(caller, now, reason))
    const data = { reason: reason ?? null, all_of_mecha: true }
    await audit(trx, caller, now, ids.map((keyId) => ({ type: 'key.revoked', keyId, mecha, data })))
    return ids
  })
}

function revocationBy({ actor }: Author, now: Date, reason?: string) {
  return { revoked_at: now, revoked_by: actor, revoke_reason: reason ?? null }
}
