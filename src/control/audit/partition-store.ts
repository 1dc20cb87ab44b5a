/** The partitions of events, in SQL, as the owner of the tables. */

import { sql, type Kysely, type Transaction } from 'kysely'
import type { Database } from '../../db/tables.js'

/** A partition that has an end. */
export interface Partition {
  readonly name: string
  /** The beginning of a month. Events from then on are not in it. */
  readonly end: Date
}

const NAME = /^events_before_(\d{4,})_(\d{2})$/
const BOUNDS = sql.id('events_open_bounds')

/** All but `events_open`, by time. */
export async function listPartitions(db: Kysely<Database>): Promise<Partition[]> {
  const { rows } = await sql<{ name: string }>`
    SELECT relname AS name FROM pg_inherits JOIN pg_class ON pg_class.oid = inhrelid WHERE inhparent = 'events'::regclass`.execute(db)
  const partitions: Partition[] = []
  for (const { name } of rows) {
    const [, year, month] = NAME.exec(name) ?? []
    if (year && month) partitions.push({ name, end: new Date(Date.UTC(Number(year), Number(month) - 1)) })
  }
  return partitions.sort((a, b) => a.end.getTime() - b.end.getTime())
}

/** The latest time in `events_open`, which is read for it; `undefined` where it is empty. */
export async function findLatest(db: Kysely<Database>): Promise<Date | undefined> {
  const { rows } = await sql<{ latest: Date | null }>`SELECT max(at) AS latest FROM events_open`.execute(db)
  return rows[0]!.latest ?? undefined
}

/** Makes all others who write or read events wait until the transaction ends. */
export async function lockEvents(trx: Transaction<Database>): Promise<void> {
  await sql`LOCK TABLE events IN ACCESS EXCLUSIVE MODE`.execute(trx)
}

/** Says what `events_open` holds and will hold, unchecked as yet. */
export async function boundOpen(trx: Transaction<Database>, start: Date | undefined, end: Date): Promise<void> {
  await sql`ALTER TABLE events_open ADD CONSTRAINT ${BOUNDS} CHECK (${start ? sql`at >= ${literal(start)} AND ` : sql``}at < ${literal(end)}) NOT VALID`.execute(trx)
}

export async function unboundOpen(trx: Transaction<Database>): Promise<void> {
  const { rows } = await sql`SELECT FROM pg_constraint WHERE conrelid = 'events_open'::regclass AND conname = 'events_open_bounds'`.execute(trx)
  if (rows.length === 0) return
  await sql`ALTER TABLE events_open DROP CONSTRAINT ${BOUNDS}`.execute(trx)
}

/** Reads `events_open` once. Others write meanwhile. */
export async function validateOpen(db: Kysely<Database>): Promise<void> {
  await sql`ALTER TABLE events_open VALIDATE CONSTRAINT ${BOUNDS}`.execute(db)
}

/** What is in `events_open` is a partition from here on, by what was validated, and `events_open` is empty. */
export async function swapOpen(trx: Transaction<Database>, start: Date | undefined, end: Date): Promise<void> {
  const name = nameOf(end)
  await sql`ALTER TABLE events DETACH PARTITION events_open`.execute(trx)
  await sql`ALTER TABLE events_open RENAME TO ${sql.id(name)}`.execute(trx)
  await attachPartition(trx, name, start, end)
  await sql`ALTER TABLE ${sql.id(name)} DROP CONSTRAINT ${BOUNDS}`.execute(trx)
  await create(trx, 'events_open')
  await sql`ALTER TABLE events ATTACH PARTITION events_open DEFAULT`.execute(trx)
}

/** A table that can become the partition that ends at a time. */
export async function createPartition(trx: Transaction<Database>, end: Date): Promise<string> {
  await create(trx, nameOf(end))
  return nameOf(end)
}

/** Its rows need not be read: it is empty, or a constraint says as much. */
export async function attachPartition(trx: Transaction<Database>, name: string, start: Date | undefined, end: Date): Promise<void> {
  await sql`ALTER TABLE events ATTACH PARTITION ${sql.id(name)} FOR VALUES FROM (${start ? literal(start) : sql`MINVALUE`}) TO (${literal(end)})`.execute(trx)
}

export async function dropPartition(trx: Transaction<Database>, name: string): Promise<void> {
  await sql`ALTER TABLE events DETACH PARTITION ${sql.id(name)}`.execute(trx)
  await sql`DROP TABLE ${sql.id(name)}`.execute(trx)
}

/** From here on a replay knows that events from before a time were dropped. */
export async function noteExpired(trx: Transaction<Database>, before: Date): Promise<void> {
  await sql`
    INSERT INTO events_expired (before) VALUES (${before})
    ON CONFLICT (only_row) DO UPDATE SET before = greatest(events_expired.before, excluded.before)`.execute(trx)
}

/** The trigger of `events` is for statements that name `events`: what names the partition needs its own. */
async function create(trx: Transaction<Database>, name: string): Promise<void> {
  const table = sql.id('public', name)
  await sql`CREATE TABLE ${table} (LIKE events INCLUDING DEFAULTS, PRIMARY KEY (position))`.execute(trx)
  await sql`CREATE TRIGGER events_are_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON ${table} FOR EACH STATEMENT EXECUTE FUNCTION events_are_append_only()`.execute(trx)
}

export async function isEmpty(db: Kysely<Database>, name: string): Promise<boolean> {
  const { rows } = await sql<{ has: boolean }>`SELECT EXISTS (SELECT FROM ${sql.id(name)}) AS has`.execute(db)
  return !rows[0]!.has
}

function nameOf(end: Date): string {
  return `events_before_${end.getUTCFullYear()}_${String(end.getUTCMonth() + 1).padStart(2, '0')}`
}

function literal(time: Date) {
  return sql`${sql.lit(time.toISOString())}::timestamptz`
}
