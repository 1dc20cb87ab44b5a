/** The kill switch: revoking every key of a Mecha. */

import { databaseFailure } from '../../db/outage.js'
import { inTransaction } from '../../db/transaction.js'
import { notFound } from '../../errors.js'
import { recordEvents } from '../audit/events.js'
import { readClock } from '../database-clock.js'
import type { Author, Caller, ControlDeps } from '../deps.js'
import { countLivingKeys, lockMecha, revokeKeysOfMecha } from './store.js'

/** What a call of the kill switch has done. */
export interface Killed {
  /** Ids (UUIDs) of keys that this call revoked: the first {@link MAX_LISTED} of them. */
  readonly ids: readonly string[]
  readonly revoked: number
  /** Keys of the Mecha that are still neither revoked nor expired: 0 unless the time was over before. */
  readonly remaining: number
}

/** Most ids in an answer. The audit trail has them all. */
export const MAX_LISTED = 1000
/** Keys that are revoked in one transaction: some tenths of a second on a busy server, and others of the organization wait for no longer. */
const PIECE = 500
/** After a piece that the database gave up, the next one is as small. */
const SMALL_PIECE = 50
/** No further piece is begun after this time. */
const KILL_SWITCH_MS = 20_000

/**
 * Revokes every key of a Mecha that has not ended yet, the newest first. Each piece is a transaction of its own with its events, so
 * that what was revoked stays so whatever happens after, and a repeat goes on. Issuing waits for the last piece, so no key slips
 * through: what is alive after it was issued after it.
 *
 * @throws Problem `not_found`, or what the database throws: what earlier pieces revoked is revoked all the same
 */
export async function revokeAllOfMecha({ db }: ControlDeps, caller: Caller, mecha: string, reason?: string): Promise<Killed> {
  const crew = mecha.slice(mecha.indexOf('^') + 1)
  if (caller.crews && !caller.crews.includes(crew)) throw notFound()
  const data = { reason: reason ?? null, all_of_mecha: true }
  const revokePiece = (size: number) =>
    inTransaction(db, async (trx) => {
      if (!(await lockMecha(trx, mecha, caller.orgId))) throw notFound()
      const now = await readClock(trx)
      const ids = await revokeKeysOfMecha(trx, mecha, revocationBy(caller, now, reason), size)
      await recordEvents(trx, caller, now, ids.map((keyId) => ({ type: 'key.revoked', keyId, mecha, data })))
      return ids
    })

  const end = performance.now() + KILL_SWITCH_MS
  const listed: string[] = []
  let revoked = 0
  for (let size = PIECE; ; ) {
    const ids = await revokePiece(size).catch((error: unknown) => {
      if (size === SMALL_PIECE || databaseFailure(error) !== 'cancelled') throw error
    })
    if (!ids) size = SMALL_PIECE
    else {
      revoked += ids.length
      listed.push(...ids.slice(0, MAX_LISTED - listed.length))
      if (ids.length < size) return { ids: listed, revoked, remaining: 0 }
    }
    if (performance.now() > end) return { ids: listed, revoked, remaining: (await countLivingKeys(db, mecha)).living }
  }
}

function revocationBy({ actor }: Author, now: Date, reason?: string) {
  return { revoked_at: now, revoked_by: actor, revoke_reason: reason ?? null }
}
