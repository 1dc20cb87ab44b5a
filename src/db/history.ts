/**
 * Which history a statement was answered from. Two servers that were one (a primary and the standby that was promoted beside
 * it) answer the same statements differently, and so does one server before and after a restore: what was learnt from
 * one says nothing about the other.
 */

import { sql } from 'kysely'

/**
 * A text that is the same for statements of one history, as SQL: when the server was started, and the files of the two tables
 * that the feed stands on. A file's name holds the database's oid, and changes when its table is made anew, as a restore
 * does. It also changes with a rewrite (VACUUM FULL), which costs followers what they hold and nothing else. Where the database
 * is held ({@link isHeld}), that is part of it. `migrations/0013_current_history.sql` says how.
 */
export const HISTORY = 'current_history()'

/** The same in line, for a statement that is planned once a connection: to call a function costs it more than all that is asked here. */
export const HISTORY_IN_LINE = `(
    SELECT CASE WHEN verified_in = this.history AND lost_at IS NULL AND NOT pg_is_in_recovery() THEN
             CASE WHEN timeline = left(pg_walfile_name(pg_current_wal_lsn()), 8) THEN this.history ELSE ${HISTORY} END
           ELSE ${HISTORY} END
    FROM (SELECT concat_ws(' ', extract(epoch FROM pg_postmaster_start_time()), pg_relation_filepath('keys'), pg_relation_filepath('changes')) AS history OFFSET 0) this
    LEFT JOIN database_identity ON true)`

/** {@link HISTORY} as an expression of a statement. */
export const history = sql<string>`${sql.raw(HISTORY)}`

/** What a statement brings besides what was asked: which history it is of ({@link HISTORY}). */
export interface OfHistory {
  readonly history: string
}

/** Whether a history is of a database that went back: nothing of it may be answered (`db/identity.ts`). */
export function isHeld(history: string): boolean {
  return history.includes(' held:')
}
