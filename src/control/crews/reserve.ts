/** Reserving crews for organizations, as the owner of the tables: who may take a handle that nobody has. */

import type { Kysely } from 'kysely'
import type { Database } from '../../db/tables.js'
import { inTransaction } from '../../db/transaction.js'
import type { Author } from '../deps.js'
import { countMechasOfOthers, deleteCrew, findCrew, insertCrew, insertEvents, lockNewMechas, readClock, type CrewRecord } from '../store.js'

export interface Reservation {
  readonly crew: string
  /** Who has it. */
  readonly org_id: string
  /** Whether that is by this call. */
  readonly reserved: boolean
  /** Other organizations that had Mechas in it before. These stay theirs. */
  readonly others: readonly { readonly org_id: string; readonly mechas: number }[]
}

/** Reserves a crew for an organization, unless it is reserved already. From then on nobody else takes a handle in it. */
export async function reserveCrew(db: Kysely<Database>, author: Author, crew: string, orgId: string): Promise<Reservation> {
  const { owner, reserved } = await inTransaction(db, async (trx) => {
    // Whoever is about to take a handle in it has it before, or finds the reservation.
    await lockNewMechas(trx)
    const found = await findCrew(trx, crew)
    if (found) return { owner: found.org_id, reserved: false }
    await insertCrew(trx, crew, orgId)
    await tell(trx, author, 'crew.reserved', crew, orgId)
    return { owner: orgId, reserved: true }
  })
  // Only now, when nobody waits for it: it looks at every Mecha.
  return { crew, org_id: owner, reserved, others: await countMechasOfOthers(db, crew, owner) }
}

/**
 * Takes a reservation back.
 *
 * @returns whose it was, or `undefined` when it was nobody's
 */
export async function releaseCrew(db: Kysely<Database>, author: Author, crew: string): Promise<CrewRecord | undefined> {
  return inTransaction(db, async (trx) => {
    const released = await deleteCrew(trx, crew)
    if (released) await tell(trx, author, 'crew.released', crew, released.org_id)
    return released
  })
}

/** Of no organization, as with signing keys: who runs the service reads them in the database, and no operator does. */
async function tell(trx: Parameters<typeof insertEvents>[0], { actor, requestId, address }: Author, type: 'crew.reserved' | 'crew.released', crew: string, orgId: string): Promise<void> {
  const event = { at: await readClock(trx), type, key_id: null, kind: 'crew' as const, mecha: null, actor, request_id: requestId, address, data: { crew, org_id: orgId } }
  await insertEvents(trx, null, [event])
}
