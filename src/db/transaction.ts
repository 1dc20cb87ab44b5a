/** Transactions that PostgreSQL may undo for another's sake. */

import type { Kysely, Transaction } from 'kysely'
import { isConflict } from './outage.js'
import type { Database } from './tables.js'

/** How often a transaction is tried. A deadlock takes PostgreSQL a second to find, so more would keep the caller waiting. */
const ATTEMPTS = 3

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
