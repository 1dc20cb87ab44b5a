/** Transactions that PostgreSQL may undo for another's sake. */

import { setTimeout as sleep } from 'node:timers/promises'
import { sql, type Kysely, type Transaction } from 'kysely'
import { isConflict, lockTimedOut } from './outage.js'
import type { Database } from './tables.js'

/** How often a transaction is tried. A deadlock takes PostgreSQL a second to find, so more would keep the caller waiting. */
const ATTEMPTS = 3
/** How often a transaction is tried that locks whole tables, and how long after a lock could not be had: this, and as much again at random. */
const LOCK_ATTEMPTS = 40
const LOCK_PAUSE_MS = 750

/**
 * Runs a transaction, and again when PostgreSQL undid it because of another one (a deadlock, a serialization failure): nothing
 * of it has happened then. So `work` does nothing but speak to the database, and hashes before.
 */
export async function inTransaction<T>(db: Kysely<Database>, work: (trx: Transaction<Database>) => Promise<T>): Promise<T> {
  for (let attempt = 1; ; attempt++) {
    try {
      return await db.transaction().execute(work)
    } catch (error) {
      if (attempt >= ATTEMPTS || !isConflict(error)) throw error
    }
  }
}

/**
 * Runs a transaction that locks whole tables. Whoever needs such a table waits behind it while it waits for its lock, so it does
 * so for half a second at most, as migrations do; then it lets the others pass, and is run again.
 */
export async function inLockingTransaction<T>(db: Kysely<Database>, work: (trx: Transaction<Database>) => Promise<T>): Promise<T> {
  for (let attempt = 1; ; attempt++) {
    try {
      return await db.transaction().execute(async (trx) => {
        await sql`SET LOCAL lock_timeout = '500ms'`.execute(trx)
        return work(trx)
      })
    } catch (error) {
      if (attempt >= LOCK_ATTEMPTS || !(isConflict(error) || lockTimedOut(error))) throw error
      await sleep(LOCK_PAUSE_MS * (1 + Math.random()))
    }
  }
}
