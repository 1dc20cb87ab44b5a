/**
 * After a restore: ends again what had been ended since the back-up, by an audit trail that was kept elsewhere, and accepts the
 * database.
 *
 * Only ends are replayed: revocations, earlier ends, and switching off. What was issued since is gone, and nothing
 * accepts it; what was widened since stays as narrow as it was in the back-up.
 */

import type { Kysely } from 'kysely'
import type { Database, Metadata } from '../../db/tables.js'
import { ConfigError } from '../../errors.js'
import { newId, publicId } from '../../credentials/id.js'
import { organizationDigest } from '../organizations/store.js'
import type { Author } from '../deps.js'
import { insertEvents, type NewEvent } from '../audit/store.js'
import { readClock } from '../database-clock.js'
import { organizationOf, type TrailEvent } from '../audit/follow.js'
import { describeEnd, endOf, recordEnd, type RecordedEnd } from './ends.js'
import { acceptDatabase, deleteCompromised, findErased, findExpired, findKnown, findLives, findNotRevoked, findOrganizations, hasEvents, lockLives, passPosition, updateLives, type EndedLife, type Life } from './store.js'

export interface Replayed {
  /** Events in the file. */
  readonly events: number
  /** Those of them that the back-up does not have. */
  readonly since: number
  readonly revoked: number
  readonly disabled: number
  /** Keys whose end was moved back to where it had been moved. */
  readonly shortened: number
  /** Signing keys that had been given up as compromised. */
  readonly signing_keys: number
  /** Keys and gateways that were issued after the back-up and had not been revoked: they are gone, and their holders need new ones. */
  readonly gone: readonly string[]
  /** Organizations that had been erased after the back-up, and are there again, with their credentials revoked. */
  readonly erased: readonly string[]
}

/** Keys of one transaction. */
const PIECE = 500
/** How often a piece is begun again after PostgreSQL undid it for the sake of another transaction. */
const ATTEMPTS = 10
const ORGANIZATION_ERASED = 'the organization was erased after the back-up'

/**
 * Replays a file of events. May be repeated: what is ended already stays as it is.
 *
 * @param pages the events, from the oldest on
 * @throws ConfigError when they do not go together with the database's own
 */
export async function replayTrail(db: Kysely<Database>, pages: AsyncIterable<readonly TrailEvent[]>, author: Author): Promise<Replayed> {
  const recorded = new Map<string, RecordedEnd>()
  const compromised: string[] = []
  let [events, since, highest] = [0, 0, 0n]
  // Old events that the database had dropped before the back-up are missing in it, and were not undone by the restore.
  const expired = await findExpired(db)
  const isExpired = ({ at }: TrailEvent) => expired !== undefined && new Date(at) < expired
  // Neither were events of an organization that had been erased before the back-up.
  const erased = await findErased(db)
  const isErased = (event: TrailEvent) => {
    const org = organizationOf(event)
    return org !== null && BigInt(event.id) <= (erased.get(organizationDigest(org)) ?? -1n)
  }
  const erasedSince = new Map<string, TrailEvent>()
  for await (const page of pages) {
    const known = await findKnown(db, page)
    for (const event of page) {
      if (BigInt(event.id) > highest) highest = BigInt(event.id)
      if (known.has(event.id) || isExpired(event) || isErased(event)) continue
      since++
      const { organization_sha256: digest } = event.data
      if (event.type === 'organization.erased' && typeof digest === 'string') erasedSince.set(digest, event)
      recordEnd(event, recorded, compromised)
    }
    events += page.length
  }
  if (since === events && (events === 0 || (await hasEvents(db))))
    throw new ConfigError('the file has no event in common with the database: it begins after the back-up, or is of another database')
  await passPosition(db, String(highest))

  const back = await findOrganizations(db, [...erasedSince.keys()])
  for (const { org_id, digest } of back) {
    const { at, actor } = erasedSince.get(digest)!
    for (const { id, kind } of await findNotRevoked(db, org_id)) {
      const key = recorded.get(id) ?? { kind }
      recorded.set(id, key)
      key.revoked ??= { revoked_at: new Date(at), revoked_by: actor, revoke_reason: ORGANIZATION_ERASED }
    }
  }
  const ids = [...recorded.keys()]
  const there = new Map<string, Life>()
  for (let i = 0; i < ids.length; i += PIECE) for (const life of await findLives(db, ids.slice(i, i + PIECE))) there.set(life.id, life)
  const counts = { revoked: 0, disabled: 0, shortened: 0 }
  for (const [orgId, idsOfOrg] of byOrganization(there.values()))
    for (let i = 0; i < idsOfOrg.length; i += PIECE) {
      const ended = await endPiece(db, orgId, idsOfOrg.slice(i, i + PIECE), recorded, author)
      for (const name of ['revoked', 'disabled', 'shortened'] as const) counts[name] += ended[name]
    }
  const gone = ids.filter((id) => !there.has(id) && !recorded.get(id)!.revoked).map((id) => publicId(recorded.get(id)!.kind, id))
  const signing_keys = await endSigningKeys(db, compromised)
  const replayed = { events, since, ...counts, signing_keys, gone, erased: back.map(({ org_id }) => org_id) }
  await accept(db, author, 'replay', { ...replayed, gone: gone.length, erased: back.length })
  return replayed
}

/** Accepts the database with whatever a restore undid in it. */
export async function waiveReplay(db: Kysely<Database>, author: Author): Promise<void> {
  await accept(db, author, 'waive', {})
}

/** Ends some keys of an organization, and writes that, in one transaction. */
async function endPiece(db: Kysely<Database>, orgId: string | null, ids: readonly string[], recorded: ReadonlyMap<string, RecordedEnd>, author: Author) {
  return repeated(() =>
    db.transaction().execute(async (trx) => {
      const lives = await lockLives(trx, ids)
      const now = await readClock(trx)
      const [ended, events]: [EndedLife[], NewEvent[]] = [[], []]
      const counts = { revoked: 0, disabled: 0, shortened: 0 }
      for (const life of lives) {
        const end = endOf(life, recorded.get(life.id)!)
        if (!end) continue
        const { was, type, data } = describeEnd(life, end)
        ended.push(end)
        for (const name of was) counts[name]++
        events.push({ at: now, type, key_id: life.id, kind: life.kind, mecha: life.mecha, actor: author.actor, request_id: author.requestId, address: author.address, data: JSON.parse(JSON.stringify(data)) as Metadata })
      }
      await updateLives(trx, ended)
      await insertEvents(trx, orgId, events)
      return counts
    }),
  )
}

/** A signing key that was given up signs nothing that is believed: without one, the control plane makes the next. */
async function endSigningKeys(db: Kysely<Database>, kids: readonly string[]): Promise<number> {
  if (kids.length === 0) return 0
  return db.transaction().execute(async (trx) => (await deleteCompromised(trx, kids)).length)
}

async function accept(db: Kysely<Database>, { actor, requestId, address }: Author, how: 'replay' | 'waive', counts: Metadata): Promise<void> {
  await db.transaction().execute(async (trx) => {
    await acceptDatabase(trx, `${how} by ${actor}`)
    const now = await readClock(trx)
    await insertEvents(trx, null, [
      { at: now, type: 'database.accepted', key_id: null, kind: 'database', mecha: null, actor, request_id: requestId, address, data: { how, ...counts } },
    ])
  })
}

function byOrganization(lives: Iterable<Life>): Map<string | null, string[]> {
  const ids = new Map<string | null, string[]>()
  for (const { org_id, id } of lives) {
    const same = ids.get(org_id)
    if (same) same.push(id)
    else ids.set(org_id, [id])
  }
  return ids
}

/** Runs a transaction again that PostgreSQL undid for the sake of another one, as after a deadlock. */
async function repeated<T>(run: () => Promise<T>): Promise<T> {
  for (let attempt = 1; ; attempt++) {
    try {
      return await run()
    } catch (error) {
      if (attempt === ATTEMPTS || !/^40/.test(String((error as { code?: unknown }).code))) throw error
    }
  }
}

/** Whoever runs the replay. */
export function restoreAuthor(): Author {
  return { actor: 'restore', requestId: newId(), address: 'local' }
}
