/**
 * Which history a statement was answered from. Two servers that were one (a primary and the standby that was promoted beside
 * it) answer the same statements differently, and so does one server before and after a restore: what was learnt from
 * one says nothing about the other.
 */

/**
 * A text that is the same for statements of one history, as SQL: when the server was started, and the files of the two tables
 * that the feed stands on. A file's name holds the database's oid, and changes when its table is made anew, as a restore
 * does. It also changes with a rewrite (VACUUM FULL), which costs followers what they hold and nothing else. Where the database
 * is held ({@link isHeld}), that is part of it. `migrations/0013_current_history.sql` says how.
 */
export const HISTORY = 'current_history()'

/** Whether a history is of a database that went back: nothing of it may be answered (`db/identity.ts`). */
export function isHeld(history: string): boolean {
  return history.includes(' held:')
}
