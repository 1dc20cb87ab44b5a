/** Removes changes that every follower has applied, some at a time, beside everything else and by one replica at a time. */

import { sql, type Kysely } from 'kysely'
import type { Database } from '../../db/tables.js'

/** Changes in one statement: some tens of milliseconds, in which others read and write them as ever. */
const PIECE = 5000

/**
 * Removes what was over when a snapshot was taken. Ends sooner where another replica sweeps: that one goes on.
 *
 * @param goesOn asked before each piece
 */
export async function sweepChanges(db: Kysely<Database>, snapshot: string, goesOn: () => boolean = () => true): Promise<void> {
  for (let since: string | null = '0'; since !== null && goesOn(); )
    since = (await sql<{ reached: string | null }>`SELECT sweep_changes(${snapshot}::pg_snapshot, ${since}::xid8, ${PIECE})::text AS reached`.execute(db)).rows[0]!.reached
}
