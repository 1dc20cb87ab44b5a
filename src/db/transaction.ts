/** Transactions that PostgreSQL may undo for another's sake. */

import { setTimeout as sleep } from 'node:timers/promises'
import { sql, type Kysely, type Transaction } from 'kysely'
import { isConflict, lockTimedOut } from './outage.js'
import type { Database } from './tables.js'

/** How often a transaction is tried. A deadlock takes PostgreSQL a second to find, so more would keep the caller waiting. */
const ATTEMPTS = 3
/**
 * Longest that a transaction which locks whole tables waits for a lock: for so long others wait behind it. Less than the second after
 * which PostgreSQL looks for deadlocks, so that with a transaction of the service that wants the same tables in another order it is this
 * one that gives way.
 */
const LOCK_TIMEOUT = '500ms'
/** Between two attempts, so that the service has the tables most of the time: this, and as much again at random. */
const LOCK_PAUSE_MS = 750
/** How long attempts go on. */
export const LOCK_PATIENCE_MS = 60_000

/**
 * Runs a transaction, and again when PostgreSQL undid it because of another one (a deadlock, a serialization failure): nothing
 * of it has happened then. So `work` does nothing but speak to the database, and hashes before.
 */
export async function inTransaction<T>(db: Kysely<Database>, work: (trx: Transaction<Database>) => Promise<T>): Promise<T> {
  return againAfterConflict(() => db.transaction().execute(work))
}

/** As {@link inTransaction}, of a statement that is a transaction by itself. */
export async function againAfterConflict<T>(work: () => Promise<T>): Promise<T> {
  for (let attempt = 1; ; attempt++) {
    try {
      return await work()
    } catch (error) {
      if (attempt >= ATTEMPTS || !isConflict(error)) throw error
    }
  }
}

/** Runs a transaction that locks whole tables: it lets others pass when it does not get its locks at once, and is run again. */
export async function inLockingTransaction<T>(db: Kysely<Database>, work: (trx: Transaction<Database>) => Promise<T>): Promise<T> {
  return givingWay(performance.now() + LOCK_PATIENCE_MS, () =>
    db.transaction().execute(async (trx) => {
      await limitLockWaits(trx)
      return work(trx)
    }))
}

/** Lets a transaction that locks whole tables give up a lock that it does not get soon. */
export async function limitLockWaits(trx: Kysely<any>): Promise<void> {
  await sql`SET LOCAL lock_timeout = ${sql.lit(LOCK_TIMEOUT)}`.execute(trx)
}

/**
 * Runs what does nothing where somebody else's transaction is in its way, and again after a pause, until a time.
 *
 * @throws what it throws: of whoever is in the way, when that time is over
 */
export async function givingWay<T>(giveUpAt: number, work: () => Promise<T>): Promise<T> {
  for (;;) {
    try {
      return await work()
    } catch (error) {
      if (performance.now() > giveUpAt || !(isConflict(error) || lockTimedOut(error))) throw error
      await sleep(LOCK_PAUSE_MS * (1 + Math.random()))
    }
  }
}
