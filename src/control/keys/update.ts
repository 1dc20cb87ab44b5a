/** Changing what an operator may change of a key that has not ended. */

import type { Metadata } from '../../db/tables.js'
import { inTransaction } from '../../db/transaction.js'
import { invalid, notFound, Problem } from '../../errors.js'
import { statusAt } from '../../credentials/status.js'
import { checkedExpiry } from './expiry.js'
import { recordEvents } from '../audit/events.js'
import { readClock } from '../database-clock.js'
import type { Caller, ControlDeps } from '../deps.js'
import { findKey, lockKey, lockMecha, updateKey, type KeyChange, type KeyRecord } from './store.js'

export interface UpdateRequest {
  readonly name?: string | null | undefined
  readonly metadata?: Metadata | undefined
  readonly expires_at?: string | null | undefined
  readonly enabled?: boolean | undefined
}

/**
 * Changes a key. One that is revoked or expired is history, and history is not edited: an expired key does not come
 * back to life by a later `expires_at`.
 *
 * @throws Problem `not_found`, `key_revoked`, `key_expired`, `invalid_request`
 */
export async function updateKeyDetails({ db, config }: ControlDeps, caller: Caller, id: string, request: UpdateRequest): Promise<{ key: KeyRecord; now: Date }> {
  const mecha = request.expires_at === undefined ? undefined : (await findKey(db, caller, 'mecha', id))?.mecha
  return inTransaction(db, async (trx) => {
    // A key that lives longer counts for longer: issuing, which counts the keys of the Mecha, waits for this.
    if (mecha) await lockMecha(trx, mecha, caller.orgId)
    const key = await lockKey(trx, caller, 'mecha', id)
    if (!key) throw notFound()
    const now = await readClock(trx)
    const status = statusAt(key, now)
    if (status === 'revoked') throw new Problem('key_revoked', 'A revoked key cannot be changed.')
    if (status === 'expired') throw new Problem('key_expired', 'An expired key cannot be changed.')
    const wanted = {
      ...(request.name !== undefined && { name: request.name }),
      ...(request.metadata !== undefined && { metadata: request.metadata }),
      ...(request.enabled !== undefined && { enabled: request.enabled }),
      ...(request.expires_at !== undefined && { expires_at: checkedExpiry(request.expires_at, key.created_at, now, config) }),
    }
    refuseLongerOverlap(key, wanted.expires_at)
    const changes = changesBetween(key, wanted)
    if (Object.keys(changes).length === 0) return { key, now }
    const { metadata, ...rest } = wanted
    const change: KeyChange = { ...rest, ...(metadata && { metadata: JSON.stringify(metadata) }) }
    await updateKey(trx, id, change)
    await recordEvents(trx, caller, now, [{ type: 'key.updated', keyId: id, mecha: key.mecha, data: { changes } }])
    return { key: { ...key, ...wanted }, now }
  })
}

/** The old key of a rotation ends with its overlap: it can be ended sooner, not kept. */
function refuseLongerOverlap(key: KeyRecord, end: Date | null | undefined): void {
  if (end === undefined || !key.rotated_to || !key.expires_at) return
  if (end === null || end > key.expires_at)
    throw invalid('body.expires_at', 'maximum', 'must not be later than the end of the overlap: the key has been rotated')
}

/** What really changes, as the audit trail shows it. */
function changesBetween(key: KeyRecord, wanted: object): Metadata {
  const entries = Object.entries(wanted as Record<string, unknown>).map(([field, to]) => {
    const from = key[field as keyof KeyRecord]
    return [field, { from: toJson(from), to: toJson(to) }] as const
  })
  return Object.fromEntries(entries.filter(([, { from, to }]) => JSON.stringify(from) !== JSON.stringify(to)))
}

function toJson(value: unknown): Metadata[string] {
  return value === undefined ? null : (JSON.parse(JSON.stringify(value)) as Metadata[string])
}
