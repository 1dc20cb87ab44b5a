/** What following the audit trail asks of the database, under the control login. */

import { sql, type Kysely } from 'kysely'
import type { Database, EventRow } from '../../db/tables.js'

/** How far the trail reaches, and who may still write below that. */
export interface Horizon {
  /** Position of the last event that can be seen; `'0'` if there is none. */
  readonly position: string
  /** Transactions that may be about to commit an event, by their virtual ids. */
  readonly writers: readonly string[]
  /** Whether the event that was last written out is there, or was erased with its organization. */
  readonly hasLast: boolean
  /** A standby does not know who writes on the primary. */
  readonly isStandby: boolean
}

/** A transaction that writes to `events` has this lock from before it draws a position until its commit can be seen. */
const WRITERS = sql`
  SELECT virtualtransaction FROM pg_locks
  WHERE locktype = 'relation' AND mode = 'RowExclusiveLock' AND granted AND relation = 'events'::regclass
    AND database = (SELECT oid FROM pg_database WHERE datname = current_database())`

/**
 * One statement: it takes its snapshot first and reads the locks afterwards. So a transaction that drew a position up to the last
 * one in the snapshot has either ended or is among the writers.
 */
export async function findHorizon(db: Kysely<Database>, last: (Pick<EventRow, 'position' | 'at' | 'type'> & { readonly org: string | null }) | undefined): Promise<Horizon> {
  const { rows } = await sql<Horizon>`
    SELECT coalesce((SELECT max(position) FROM events), 0)::text AS position,
           ${last?.position ?? null}::bigint IS NULL OR EXISTS (
             SELECT FROM events WHERE position = ${last?.position ?? null} AND at = ${last?.at ?? null} AND type = ${last?.type ?? null})
             OR EXISTS (
             SELECT FROM erasures WHERE organization = sha256(convert_to(${last?.org ?? null}, 'UTF8')) AND (ended_at IS NULL OR through >= ${last?.position ?? null})) AS "hasLast",
           ARRAY(${WRITERS}) AS writers, pg_is_in_recovery() AS "isStandby"`.execute(db)
  return rows[0]!
}

/** Which of some writers have not ended. */
export async function findWriters(db: Kysely<Database>, among: readonly string[]): Promise<string[]> {
  const { rows } = await sql<{ virtualtransaction: string }>`${WRITERS} AND virtualtransaction = ANY(${among}::text[])`.execute(db)
  return rows.map((row) => row.virtualtransaction)
}

/** Events of all organizations and of none, in the order of their positions. */
export async function findEvents(db: Kysely<Database>, after: string, upTo: string, limit: number): Promise<EventRow[]> {
  return db
    .selectFrom('events').selectAll()
    .where('position', '>', after).where('position', '<=', upTo)
    .orderBy('position').limit(limit)
    .execute()
}
