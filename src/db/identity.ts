/**
 * Whether the database is the one that was last accepted. After a restore it is not: revocations since the back-up are
 * undone, and nothing is answered from it until an operator has replayed or waived them. `migrations/0010_restore.sql`
 * has the rules.
 */

import { sql, type Kysely } from 'kysely'

const COMMANDS = 'run mecha-keys restore replay FILE, or mecha-keys restore waive'

/** By what `restore_hold()` says. */
const REASONS: Readonly<Record<string, string>> = {
  restored: 'this is not the database that was last accepted, but one that was restored or copied',
  timeline: 'another server took over or the database was recovered to a point in time, and no replica knows whether anything was lost',
  lost: 'the database went back: changes that a replica had known are gone',
}

/** Why nothing may be answered from the database, and what ends that; `undefined` when it is the accepted one. */
export async function restoreHold(db: Kysely<any>): Promise<string | undefined> {
  const { rows } = await sql<{ hold: string | null }>`SELECT restore_hold() AS hold`.execute(db)
  const hold = rows[0]!.hold
  return hold === null ? undefined : `${REASONS[hold] ?? hold}: ${COMMANDS}`
}
