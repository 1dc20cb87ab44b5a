/**
 * The audit trail as lines of JSON, for whoever keeps it elsewhere: what a restore of the database is repaired with.
 *
 * Positions are drawn before a commit, and are in the order of commits within one organization alone (decision 7). So no event
 * is written out while a transaction may still commit one with a lower position: the file is in the order of positions, misses
 * none, and its last line says where to go on.
 */

import { setTimeout as sleep } from 'node:timers/promises'
import type { Kysely } from 'kysely'
import { isDatabaseOutage } from '../../db/outage.js'
import type { Database, EventRow } from '../../db/tables.js'
import { ConfigError } from '../../errors.js'
import { publicId, type CredentialKind } from '../../credentials/id.js'
import { findEvents, findHorizon, findWriters } from './follow-store.js'

/** An event as a line: what `/v1/events` shows, and whose it is. */
export interface TrailEvent {
  /** Its position: a whole number, as text. */
  readonly id: string
  readonly at: string
  readonly type: string
  /** `null` for what is of no organization. */
  readonly org_id: string | null
  /** Of a key (`key_…`) or a gateway credential (`gw_…`), or `null`. */
  readonly key_id: string | null
  readonly mecha: string | null
  readonly actor: string
  readonly request_id: string
  readonly address: string
  readonly data: EventRow['data']
}

export interface FollowDeps {
  readonly db: Kysely<Database>
  /** Stores some events. Once it resolves, they are not written again. */
  readonly write: (events: readonly TrailEvent[]) => Promise<void>
  /** Where to go on: after this event, or after this position alone. */
  readonly last: TrailEvent | undefined
  readonly after: string
  /** Ends when there is nothing more unless this says to wait for more. */
  readonly isEndless: boolean
  readonly signal: AbortSignal
  /** Shows a message to whoever runs the command. */
  readonly warn: (message: string) => void
}

const PAGE = 1000
/** Between two looks for more. */
const POLL_MS = 250
/** Between two looks at those who are about to commit. */
const WRITERS_POLL_MS = 10
/** How long a transaction may stay open before {@link FollowDeps.warn} is called. */
const WRITERS_PATIENCE_MS = 10_000
/** Between two attempts while the database is away, at most. */
const RETRY_MS = 5000

/**
 * Writes out events in the order of their positions, until there are no more, or without end. Waits for a database
 * that is away if it is to go on without end.
 *
 * @throws ConfigError when the database does not have the event that was written last, or is a standby
 */
export async function followTrail({ db, write, last, after, isEndless, signal, warn }: FollowDeps): Promise<void> {
  let position = last?.id ?? after
  for (let failures = 0; !signal.aborted; ) {
    try {
      const horizon = await settledHorizon(db, last, signal, warn)
      if (failures > 0) warn('the database is back')
      failures = 0
      for (let isMore = BigInt(horizon) > BigInt(position); isMore && !signal.aborted; ) {
        const events = await findEvents(db, position, horizon, PAGE)
        const trail = events.map(trailEvent)
        if (trail.length > 0) await write(trail)
        last = trail.at(-1) ?? last
        // Where the last positions were drawn and never committed, there is nothing more to come below the horizon.
        position = trail.length < PAGE ? horizon : last!.id
        isMore = trail.length === PAGE
      }
      if (!isEndless) return
      await pause(POLL_MS, signal)
    } catch (error) {
      if (!isEndless || !isDatabaseOutage(error)) throw error
      if (failures === 0) warn(`the database does not answer, trying again: ${(error as Error).message}`)
      await pause(Math.min(100 * 2 ** failures++, RETRY_MS), signal)
    }
  }
}

/** The last position, once nothing can be committed below it any more. */
async function settledHorizon(db: Kysely<Database>, last: TrailEvent | undefined, signal: AbortSignal, warn: (message: string) => void): Promise<string> {
  const { position, writers, hasLast, isStandby } = await findHorizon(db, last && { position: last.id, at: new Date(last.at), type: last.type, org: organizationOf(last) })
  if (isStandby) throw new ConfigError('DATABASE_URL leads to a standby, which does not know what is about to be committed: follow the primary')
  if (!hasLast)
    throw new ConfigError(`the database does not have event ${last!.id}, the last that was written: it was restored, or has dropped that event since (EVENTS_RETENTION). Keep what was written for mecha-keys restore replay, and follow to a new file`)
  const start = performance.now()
  let hasWarned = false
  for (let open = [...writers]; open.length > 0 && !signal.aborted; ) {
    await pause(WRITERS_POLL_MS, signal)
    open = await findWriters(db, open)
    if (hasWarned || performance.now() - start < WRITERS_PATIENCE_MS) continue
    hasWarned = true
    warn('waiting for a transaction that has written an event and stays open')
  }
  return signal.aborted ? '0' : position
}

/** The organization that an event is about. Events of crews belong to none, and name the organization of the crew in their data. */
export function organizationOf({ org_id, type, data }: TrailEvent): string | null {
  if (org_id !== null || !type.startsWith('crew.')) return org_id
  return typeof data['org_id'] === 'string' ? data['org_id'] : null
}

function trailEvent({ position, at, type, org_id, key_id, kind, mecha, actor, request_id, address, data }: EventRow): TrailEvent {
  return { id: position, at: at.toISOString(), type, org_id, key_id: key_id && publicId(kind as CredentialKind, key_id), mecha, actor, request_id, address, data }
}

/** Resolves early when the signal aborts. */
async function pause(ms: number, signal: AbortSignal): Promise<void> {
  await sleep(ms, undefined, { signal }).catch(() => {})
}
