/** The audit trail in the database: writing events, and listing those of an organization. */

import { sql, type Kysely, type Transaction } from 'kysely'
import type { Database, EventRow } from '../../db/tables.js'
import { crewsToList, type AccessFilter } from '../operators/access-filter.js'

export type NewEvent = Pick<EventRow, 'at' | 'type' | 'key_id' | 'kind' | 'mecha' | 'actor' | 'request_id' | 'address' | 'data'>

/**
 * Writes events, as the last act of a transaction. Those of one organization are written one transaction at a time
 * from here to the commit, so that positions are in the order of commits and a reader who has seen one has missed
 * none before it.
 */
export async function insertEvents(trx: Transaction<Database>, orgId: string | null, events: readonly NewEvent[]): Promise<void> {
  if (events.length === 0) return
  // One statement takes the lock and writes the rows, so that other transactions of the organization wait no longer than needed.
  await sql`
    WITH locked AS MATERIALIZED (SELECT pg_advisory_xact_lock(hashtextextended(${orgId ?? ''}, 20826)))
    INSERT INTO events (at, type, org_id, key_id, kind, mecha, actor, request_id, address, data)
    SELECT at, type, ${orgId}, key_id, kind, mecha, actor, request_id, address, data
    FROM locked, jsonb_to_recordset(${JSON.stringify(events)}::jsonb) AS event
      (at timestamptz, type text, key_id uuid, kind text, mecha text, actor text, request_id text, address text, data jsonb)`.execute(trx)
}

export interface EventFilter {
  readonly mecha?: string | undefined
  readonly keyId?: string | undefined
  readonly type?: string | undefined
  readonly actor?: string | undefined
  readonly since?: Date | undefined
  /** Exclusive. */
  readonly until?: Date | undefined
  readonly after: string
  readonly limit: number
}

/** Oldest first, from a position on. */
export async function listEvents(db: Kysely<Database>, access: AccessFilter & { orgId: string }, filter: EventFilter): Promise<EventRow[]> {
  const { mecha, keyId, type, actor, since, until, after, limit } = filter
  const crews = crewsToList(access, mecha)
  const { first, last } = await positionsOf(db, access.orgId, filter)
  const matching = db
    .selectFrom('events').selectAll()
    .where('org_id', '=', access.orgId)
    .where('position', '>', after)
    .$if(first !== null, (query) => query.where('position', '>', first!))
    .$if(last !== null, (query) => query.where('position', '<', last!))
    .$if(mecha !== undefined, (query) => query.where('mecha', '=', mecha!))
    .$if(keyId !== undefined, (query) => query.where('key_id', '=', keyId!))
    .$if(type !== undefined, (query) => query.where('type', '=', type!))
    .$if(actor !== undefined, (query) => query.where('actor', '=', actor!))
    .$if(since !== undefined, (query) => query.where('at', '>=', since!))
    .$if(until !== undefined, (query) => query.where('at', '<', until!))
    .orderBy('position').limit(limit)
  if (!crews) return matching.execute()
  // Crew by crew, for an index has the events of each in order. In one plan for all crews: there is one for each partition as it is.
  return db
    .selectFrom(sql<{ crew: string }>`unnest(${crews}::text[])`.as('crew'))
    .innerJoinLateral(matching.where(sql<string>`split_part(mecha, '^', 2)`, '=', sql<string>`crew`).as('events'), (join) => join.onTrue())
    .selectAll('events')
    .orderBy('position').limit(limit)
    .execute()
}

/**
 * Positions between which all events of a time are: times are in the order of positions, but for transactions beside one another and clocks
 * that were set back, by less than a day. Without them a page would read past all events before that time first, or past all after it at its end.
 */
async function positionsOf(db: Kysely<Database>, orgId: string, { since, until }: Pick<EventFilter, 'since' | 'until'>): Promise<{ first: string | null; last: string | null }> {
  if (since === undefined && until === undefined) return { first: null, last: null }
  const { rows } = await sql<{ first: string | null; last: string | null }>`
    SELECT (SELECT position FROM events WHERE org_id = ${orgId} AND at < ${since}::timestamptz - interval '1 day' ORDER BY at DESC LIMIT 1) AS first,
           (SELECT position FROM events WHERE org_id = ${orgId} AND at > ${until}::timestamptz + interval '1 day' ORDER BY at LIMIT 1) AS last`.execute(db)
  return rows[0]!
}
