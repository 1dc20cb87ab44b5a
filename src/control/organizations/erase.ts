/**
 * Erasing an organization, as the owner of the tables: everything that the database has of it, for good.
 *
 * Its credentials are revoked first, as an operator would revoke them, and nothing is removed before every replica has applied
 * that. Each step is in pieces that are transactions of their own, and what has been done is not done again: an
 * erasure that was interrupted is continued by running it once more. Until it ends nothing can be made for the organization.
 */

import { createHash } from 'node:crypto'
import { setTimeout as sleep } from 'node:timers/promises'
import type { Kysely, Transaction } from 'kysely'
import type { Database, Metadata } from '../../db/tables.js'
import { inLockingTransaction, inTransaction } from '../../db/transaction.js'
import { recordEvents } from '../audit/events.js'
import { insertEvents } from '../audit/store.js'
import { readClock } from '../database-clock.js'
import type { Author } from '../deps.js'
import { ReplicaWatch } from '../receipts/replicas.js'
import { readReplicas } from '../receipts/store.js'
import {
  beginErasure, deleteCrewEvents, deleteCrews, deleteEvents, deleteKeys, deleteMechas, endErasure, findChanges, findErasure, lockMakers, lockNotRevoked, organizationDigest, revokeCredentials, takeCensus,
  type Census,
} from './store.js'

/** What would be erased, and what confirms that. */
export interface Plan {
  readonly counts: Census
  readonly confirmation: string
  /** Whether an erasure with that confirmation has begun. */
  readonly isUnderWay: boolean
}

export interface Erased {
  /** What there was of it when its erasure began. */
  readonly counts: Census
  /** How it is named in what remains: the SHA-256 of its id. */
  readonly organization_sha256: string
}

/** Why nothing was removed. */
export type Unfinished = 'not_confirmed' | 'not_propagated'

export interface EraseOptions {
  /** {@link Plan.confirmation} of what was shown. */
  readonly confirmation: string
  readonly author: Author
  /** How long a replica that does not say so answers from memory at most. */
  readonly boundMs: number
  /** Called when a step is over, with what it did. */
  readonly onStep: (message: string) => void
}

/** Rows of one transaction. */
const PIECE = 500
const REASON = 'the organization is erased'
const POLL_MS = 100
/** Beyond the bound after which a silent replica answers nothing from memory. */
const PATIENCE_MS = 5000

/** What the database has of an organization. Nothing is changed. */
export async function planErasure(db: Kysely<Database>, orgId: string): Promise<Plan> {
  const [counts, begun] = [await takeCensus(db, orgId), await findErasure(db, orgId)]
  if (begun && !begun.ended_at) return { counts, confirmation: begun.confirmation, isUnderWay: true }
  return { counts, confirmation: confirmationOf(orgId, counts), isUnderWay: false }
}

/** Erases an organization, or goes on with it. */
export async function eraseOrganization(db: Kysely<Database>, orgId: string, { confirmation, author, boundMs, onStep }: EraseOptions): Promise<Erased | Unfinished> {
  const counts = await begin(db, orgId, confirmation)
  if (!counts) return 'not_confirmed'
  const revoked = await revokeAll(db, orgId, author)
  onStep(`revoked ${revoked} credentials`)
  const replicas = await allHaveApplied(db, orgId, boundMs)
  if (replicas === undefined) return 'not_propagated'
  onStep(replicas === 0 ? 'no replica is alive that could accept them' : `all replicas refuse them: ${replicas}`)

  await inPieces(db, async (trx) => (await deleteKeys(trx, orgId, PIECE)) > 0)
  onStep('removed its credentials')
  await inPieces(db, async (trx) => (await deleteMechas(trx, orgId, PIECE)) > 0)
  await inTransaction(db, (trx) => deleteCrews(trx, orgId))
  onStep('removed its Mechas and crews')
  await inPieces(db, (trx) => deleteEvents(trx, orgId, PIECE))
  onStep('removed its events')
  return finish(db, orgId, author, counts)
}

/** A short digest of the plan that was shown, so that no other plan can be confirmed by mistake. */
function confirmationOf(orgId: string, counts: Census): string {
  return createHash('sha256').update(JSON.stringify([orgId, counts])).digest('hex').slice(0, 16)
}

/** From here on nothing is made for it. Returns what there was, or `undefined` where that is not what was confirmed. */
async function begin(db: Kysely<Database>, orgId: string, confirmation: string): Promise<Census | undefined> {
  return inLockingTransaction(db, async (trx) => {
    // A transaction that makes something for it either has done so by now, or finds that it is being erased.
    await lockMakers(trx)
    const begun = await findErasure(trx, orgId)
    if (begun && !begun.ended_at) return begun.confirmation === confirmation ? begun.counts : undefined
    const counts = await takeCensus(trx, orgId)
    if (confirmationOf(orgId, counts) !== confirmation) return undefined
    await beginErasure(trx, orgId, confirmation, counts)
    return counts
  })
}

/** Revokes what is not revoked, with an event each, as whoever revokes does. */
async function revokeAll(db: Kysely<Database>, orgId: string, author: Author): Promise<number> {
  let revoked = 0
  await inPieces(db, async (trx) => {
    const credentials = await lockNotRevoked(trx, orgId, PIECE)
    const now = await readClock(trx)
    await revokeCredentials(trx, credentials.map(({ id }) => id), now, author.actor, REASON)
    await recordEvents(trx, { ...author, orgId }, now, credentials.map(({ id, kind, mecha }) => ({ type: kind === 'mecha' ? 'key.revoked' : 'gateway.revoked', keyId: id, mecha, data: { reason: REASON } })))
    revoked += credentials.length
    return credentials.length > 0
  })
  return revoked
}

/**
 * Waits until no replica answers by what was before, and says how many are alive. As with receipts, a silent one is waited for
 * until it can answer nothing from memory any more.
 *
 * @returns `undefined` when that cannot be said in time
 */
async function allHaveApplied(db: Kysely<Database>, orgId: string, boundMs: number): Promise<number | undefined> {
  const xids = await findChanges(db, orgId)
  const watch = new ReplicaWatch(boundMs)
  const start = performance.now()
  for (let longest = boundMs; ; ) {
    const askedAt = watch.age()
    const reading = await readReplicas(db, xids, watch.known)
    const { replicas, hasOthers } = watch.take(reading, askedAt)
    const isOver = !reading.is_on_hold && !hasOthers && replicas.every(({ unseen }) => unseen.length === 0)
    if (isOver) return replicas.length
    longest = Math.max(longest, ...reading.replicas.map(({ bound_ms }) => bound_ms ?? 0))
    if (performance.now() - start > longest + PATIENCE_MS) return undefined
    await sleep(POLL_MS)
  }
}

/** Records that the erasure is over, if nothing is left. Events of crews that were written meanwhile are removed first. */
async function finish(db: Kysely<Database>, orgId: string, { actor, requestId, address }: Author, counts: Census): Promise<Erased> {
  return inLockingTransaction(db, async (trx) => {
    await lockMakers(trx)
    await deleteCrewEvents(trx, orgId)
    const left = await takeCensus(trx, orgId)
    if (Object.values(left).some((count) => count > 0)) throw new Error('something was made for the organization while it was being erased: run the command again')
    const [now, organization_sha256] = [await readClock(trx), organizationDigest(orgId)]
    await endErasure(trx, orgId, now)
    const data: Metadata = { organization_sha256, ...counts }
    await insertEvents(trx, null, [{ at: now, type: 'organization.erased', key_id: null, kind: 'organization', mecha: null, actor, request_id: requestId, address, data }])
    return { counts, organization_sha256 }
  })
}

/** Repeats a transaction until it finds nothing more to do. */
async function inPieces(db: Kysely<Database>, piece: (trx: Transaction<Database>) => Promise<boolean>): Promise<void> {
  while (await inTransaction(db, piece));
}
