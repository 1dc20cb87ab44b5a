/** Signing keys, governed: the first one, the next one, and the root secret that they are sealed under. */

import type { FastifyBaseLogger } from 'fastify'
import type { Kysely, Transaction } from 'kysely'
import type { Database, Metadata } from '../../db/tables.js'
import { inTransaction } from '../../db/transaction.js'
import type { Roots } from '../../credentials/roots.js'
import { endedBy, LEAD, makeSigningKey, resealSigningKey, RootUnknown, signerAt, signingTime, soundOf, type SigningAlgorithm } from '../../credentials/signing-key.js'
import type { Author } from '../deps.js'
import { insertEvents } from '../audit/store.js'
import { readClock } from '../database-clock.js'
import { deleteSigningKeys, freeStatusListIndexes, insertSigningKey, listSigningKeys, lockSigningKeys, replaceSeal, type SigningKeyRow } from './store.js'

export interface SigningDeps {
  readonly db: Kysely<Database>
  readonly roots: Roots
}

/** `next` is published and does not sign yet, `signing` signs, `past` verifies what it signed. */
export type SigningKeyRole = 'next' | 'signing' | 'past'
export interface SigningKeyView {
  readonly kid: string
  readonly alg: SigningAlgorithm
  readonly role: SigningKeyRole
  readonly signs_from: Date
  readonly created_by: string
}

export interface Rotation {
  /** As the key that signs now, unless said otherwise. */
  readonly alg?: SigningAlgorithm | undefined
  /** The keys that are there are in other hands: nothing that they sign may be believed any more. */
  readonly compromised?: boolean | undefined
}

export interface MaintenanceOptions {
  readonly log?: FastifyBaseLogger
  /** The latest that it can be, in milliseconds, whatever the database's clock says: what has not ended by then stays. */
  readonly latest?: number
}

/**
 * What has to be done from time to time: makes the first key if there is none, seals the others anew under the newest
 * root secret, deletes those that have ended, and frees indexes of the status list. Any number of processes may do it
 * at once. A key whose root secret is not configured stays as it is. One that is damaged stays as well, and counts for nothing:
 * the others do what they did before it was made.
 *
 * @returns the database's clock
 */
export async function maintainSigningKeys({ db, roots }: SigningDeps, author: Author, { log, latest = Infinity }: MaintenanceOptions = {}): Promise<Date> {
  const now = await inTransaction(db, async (trx) => {
    const keys = soundOf(await lockSigningKeys(trx), roots, ({ kid }, error) => log?.error({ kid, cause: (error as Error).message }, 'a signing key is not as it was made'))
    const now = await readClock(trx)
    if (keys.length === 0) await addKey(trx, author, now, { ...makeSigningKey('EdDSA', roots[0]), signs_from: now })
    const ended = endedBy(keys, Math.min(now.getTime(), latest))
    await deleteSigningKeys(trx, ended.map(({ kid }) => kid))
    for (const key of keys) if (key.root !== roots[0].id && !ended.includes(key)) await reseal(trx, key, roots, log)
    return now
  })
  await freeStatusListIndexes(db, new Date(Math.min(now.getTime(), latest)))
  return now
}

/**
 * Makes the next signing key. It is published now and signs when everybody can have it; the one before verifies until
 * the last JWT that it signed has expired. With `compromised` the new one signs at once and the others are gone: what
 * they signed is refused as soon as the published keys are fetched again.
 */
export async function rotateSigningKeys({ db, roots }: SigningDeps, author: Author, { alg, compromised = false }: Rotation): Promise<SigningKeyView[]> {
  return inTransaction(db, async (trx) => {
    const keys = await lockSigningKeys(trx)
    const now = await readClock(trx)
    const sound = soundOf(keys, roots, () => {})
    const gone = compromised ? keys : endedBy(sound, now.getTime())
    await deleteSigningKeys(trx, gone.map(({ kid }) => kid))
    const isFirst = compromised || gone.length === sound.length
    const made = makeSigningKey(alg ?? sound.at(-1)?.alg ?? 'EdDSA', roots[0])
    const added = { ...made, signs_from: isFirst ? now : new Date(now.getTime() + LEAD * 1000) }
    await addKey(trx, author, now, added, compromised ? { compromised: gone.map(({ kid }) => kid) } : {})
    return viewsOf(await listSigningKeys(trx), now)
  })
}

export async function describeSigningKeys(db: Kysely<Database>): Promise<SigningKeyView[]> {
  const [keys, now] = await Promise.all([listSigningKeys(db), readClock(db)])
  return viewsOf(keys, now)
}

/** The events of signing keys are of no organization: they are read in the database, by whoever runs the service. */
async function addKey(trx: Transaction<Database>, { actor, requestId, address }: Author, now: Date, key: Omit<SigningKeyRow, 'created_at' | 'created_by'>, more: Metadata = {}): Promise<void> {
  await insertSigningKey(trx, { ...key, created_at: now, created_by: actor })
  const data = { kid: key.kid, alg: key.alg, signs_from: key.signs_from.toISOString(), ...more }
  const event = { at: now, type: 'signing_key.created', key_id: null, kind: 'signing_key' as const, mecha: null, actor, request_id: requestId, address, data }
  await insertEvents(trx, null, [event])
}

async function reseal(trx: Transaction<Database>, key: SigningKeyRow, roots: Roots, log: FastifyBaseLogger | undefined): Promise<void> {
  try {
    await replaceSeal(trx, { ...key, ...resealSigningKey(key, roots) })
  } catch (error) {
    if (!(error instanceof RootUnknown)) throw error
    log?.error({ kid: key.kid, cause: error.message }, 'a signing key cannot be opened')
  }
}

function viewsOf(keys: readonly SigningKeyRow[], now: Date): SigningKeyView[] {
  const signer = signerAt(keys, signingTime(keys, now.getTime()))
  return keys.map(({ kid, alg, signs_from, created_by }) => {
    const role = kid === signer?.kid ? 'signing' : signs_from > now ? 'next' : 'past'
    return { kid, alg, role, signs_from, created_by }
  })
}
