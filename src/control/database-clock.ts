/** The time by which keys begin, end and are judged: the database's, so that all replicas agree. */

import { sql, type Kysely } from 'kysely'
import type { Database } from '../db/tables.js'

/** At the millisecond that the database stores. */
export const CLOCK = sql<Date>`date_trunc('milliseconds', clock_timestamp())`

/** Read it after taking a lock: a transaction's own time is from before it waited. */
export async function readClock(db: Kysely<Database>): Promise<Date> {
  const { rows } = await sql<{ now: Date }>`SELECT ${CLOCK} AS now`.execute(db)
  return rows[0]!.now
}
