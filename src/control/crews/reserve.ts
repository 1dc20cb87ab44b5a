/** Reserving crews for organizations, as the owner of the tables: who may take a handle that nobody has. */

import type { Kysely } from 'kysely'
import type { Database } from '../../db/tables.js'
import { inTransaction } from '../../db/transaction.js'
import type { Author } from '../deps.js'
import { insertEvents } from '../audit/store.js'
import { readClock } from '../database-clock.js'
import { countMechasOfOthers, deleteCrew, findCrew, insertCrew, lockNewMechas, type CrewRecord } from './store.js'

export interface Reservation {
  readonly crew: string
  /** The organization that holds it. */
  readonly org_id: string
  /** Whether this call has reserved it. */
  readonly reserved: boolean
  /** Other organizations that had Mechas in it before. These stay theirs. */
  readonly others: readonly { readonly org_id: string; readonly mechas: number }[]
}

/** Reserves a crew for an organization, unless it is reserved already. From then on nobody else takes a handle in it. */
export async function reserveCrew(db: Kysely<Database>, author: Author, crew: string, orgId: string): Promise<Reservation> {
  const { owner, reserved } = await inTransaction(db, async (trx) => {
    // A request that is about to take a handle in the crew either has taken it by now, or finds the reservation.
    await lockNewMechas(trx)
    const found = await findCrew(trx, crew)
    if (found) return { owner: found.org_id, reserved: false }
    await insertCrew(trx, crew, orgId)
    await recordCrewEvent(trx, author, 'crew.reserved', crew, orgId)
    return { owner: orgId, reserved: true }
  })
  // After the transaction, so that nothing waits for it: it reads every Mecha.
  return { crew, org_id: owner, reserved, others: await countMechasOfOthers(db, crew, owner) }
}

/**
 * Takes a reservation back.
 *
 * @returns the reservation that there was, or `undefined` where there was none
 */
export async function releaseCrew(db: Kysely<Database>, author: Author, crew: string): Promise<CrewRecord | undefined> {
  return inTransaction(db, async (trx) => {
    const released = await deleteCrew(trx, crew)
    if (released) await recordCrewEvent(trx, author, 'crew.released', crew, released.org_id)
    return released
  })
}

/** The events of crews are of no organization, as with signing keys: they are read in the database by whoever runs the service, and by no operator. */
async function recordCrewEvent(trx: Parameters<typeof insertEvents>[0], { actor, requestId, address }: Author, type: 'crew.reserved' | 'crew.released', crew: string, orgId: string): Promise<void> {
  const event = { at: await readClock(trx), type, key_id: null, kind: 'crew' as const, mecha: null, actor, request_id: requestId, address, data: { crew, org_id: orgId } }
  await insertEvents(trx, null, [event])
}
