/**
 * Events by time, as the owner of the tables: partitions for the months to come, and an end of those that are older than
 * events are kept.
 *
 * Every partition but one is named after where it ends, and begins where the one before it ends, the first one with time itself. So
 * there is no gap between them. `events_open` is for all later times: an event always has a place, whether this runs or not. What
 * has come to lie there becomes a partition like the others before months are made.
 */

import type { Kysely } from 'kysely'
import type { Database } from '../../db/tables.js'
import { inLockingTransaction } from '../../db/transaction.js'
import { readClock } from '../database-clock.js'
import { attachPartition, boundOpen, createPartition, dropPartition, findLatest, isEmpty, listPartitions, lockEvents, noteExpired, swapOpen, unboundOpen, validateOpen, type Partition } from './partition-store.js'

export interface Expiry {
  /** Partitions that were made. */
  readonly made: readonly string[]
  /** Partitions that were dropped. */
  readonly dropped: readonly string[]
  /** Until when events were dropped by this; `null`: none were. */
  readonly before: Date | null
}

/** Months that are made ahead, beyond the one that is now. */
const MONTHS_AHEAD = 3
/**
 * How far ahead the end of what lies in `events_open` is set. Between its setting and its use, a few seconds as a rule, no event
 * can be written past it: after a crash in between, there is that much time to run this again.
 */
const DAYS_AHEAD = 28
const DAY_MS = 86_400_000

/**
 * Makes the partitions of the coming months, and drops those that are wholly older than events are kept.
 *
 * @param keepSeconds how long events are kept at least; `undefined` drops nothing
 */
export async function expireEvents(db: Kysely<Database>, keepSeconds: number | undefined): Promise<Expiry> {
  // The earlier of two clocks: one that was set ahead drops nothing.
  const now = new Date(Math.min(Date.now(), (await readClock(db)).getTime()))
  const before = await listPartitions(db)
  await closeOpen(db, now)
  await makeMonths(db, now)
  const made = (await listPartitions(db)).filter(({ name }) => !before.some((one) => one.name === name)).map(({ name }) => name)
  const dropped = keepSeconds === undefined ? [] : await dropBefore(db, new Date(now.getTime() - keepSeconds * 1000))
  return { made, dropped: dropped.map(({ name }) => name), before: dropped.at(-1)?.end ?? null }
}

/** Makes a partition like the others of what lies in `events_open`, without copying it. It is read once, while others write. */
async function closeOpen(db: Kysely<Database>, now: Date): Promise<void> {
  await inLockingTransaction(db, unboundOpen)
  const latest = await findLatest(db)
  if (!latest) return
  const start = (await listPartitions(db)).at(-1)?.end
  const end = monthAfter(new Date(Math.max(now.getTime() + DAYS_AHEAD * DAY_MS, latest.getTime())))
  await inLockingTransaction(db, (trx) => boundOpen(trx, start, end))
  try {
    await validateOpen(db)
    await inLockingTransaction(db, async (trx) => {
      await lockEvents(trx)
      await swapOpen(trx, start, end)
    })
  } catch (error) {
    await inLockingTransaction(db, unboundOpen)
    throw error
  }
}

async function makeMonths(db: Kysely<Database>, now: Date): Promise<void> {
  const thisMonthsEnd = monthAfter(now)
  const last = addMonths(thisMonthsEnd, MONTHS_AHEAD)
  for (let start = (await listPartitions(db)).at(-1)?.end; !start || start < last; ) {
    const end = !start || start < thisMonthsEnd ? thisMonthsEnd : addMonths(start, 1)
    const from = start
    await inLockingTransaction(db, async (trx) => attachPartition(trx, await createPartition(trx, end), from, end))
    start = end
  }
}

/** Drops what ended before a time. An empty partition stands in for all of it, so that no time is without one. */
async function dropBefore(db: Kysely<Database>, time: Date): Promise<Partition[]> {
  return inLockingTransaction(db, async (trx) => {
    const ended = (await listPartitions(trx)).filter(({ end }) => end <= time)
    const last = ended.at(-1)
    if (!last || (ended.length === 1 && (await isEmpty(trx, last.name)))) return []
    await lockEvents(trx)
    for (const { name } of ended) await dropPartition(trx, name)
    await attachPartition(trx, await createPartition(trx, last.end), undefined, last.end)
    await noteExpired(trx, last.end)
    return ended
  })
}

/** The beginning of the next month, in UTC. */
function monthAfter(time: Date): Date {
  return new Date(Date.UTC(time.getUTCFullYear(), time.getUTCMonth() + 1))
}

function addMonths(month: Date, count: number): Date {
  return new Date(Date.UTC(month.getUTCFullYear(), month.getUTCMonth() + count))
}
