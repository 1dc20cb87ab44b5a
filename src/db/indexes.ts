/**
 * Indexes that are built while others write. `CREATE INDEX` in a migration would keep writers of a large table away for seconds;
 * `CREATE INDEX CONCURRENTLY` cannot run in a transaction, and so in no migration.
 */

import { sql, type Kysely } from 'kysely'
import { givingWay, limitLockWaits } from './transaction.js'

interface Index {
  readonly name: string
  readonly table: 'keys' | 'events'
  readonly of: string
}

const NEWEST = 'created_at DESC, id DESC'
const LAST_ENDED = 'expires_at DESC, id DESC'
const DISABLED = 'NOT enabled AND revoked_at IS NULL'
const REVOKED = 'revoked_at IS NOT NULL'
const ENDING = 'revoked_at IS NULL AND expires_at IS NOT NULL'

/** What listings and `root-secrets status` need. The conditions are those of the queries, so that PostgreSQL sees that they apply. */
const INDEXES: readonly Index[] = [
  { name: 'keys_by_crew', table: 'keys', of: `(org_id, crew, ${NEWEST}) WHERE crew IS NOT NULL` },
  { name: 'keys_disabled_by_org', table: 'keys', of: `(org_id, kind, ${NEWEST}) WHERE ${DISABLED}` },
  { name: 'keys_disabled_by_crew', table: 'keys', of: `(org_id, crew, ${NEWEST}) WHERE ${DISABLED} AND crew IS NOT NULL` },
  { name: 'keys_revoked_by_org', table: 'keys', of: `(org_id, kind, ${NEWEST}) WHERE ${REVOKED}` },
  { name: 'keys_revoked_by_crew', table: 'keys', of: `(org_id, crew, ${NEWEST}) WHERE ${REVOKED} AND crew IS NOT NULL` },
  { name: 'keys_ending_by_org', table: 'keys', of: `(org_id, kind, ${LAST_ENDED}) WHERE ${ENDING}` },
  { name: 'keys_ending_by_crew', table: 'keys', of: `(org_id, crew, ${LAST_ENDED}) WHERE ${ENDING} AND crew IS NOT NULL` },
  { name: 'keys_by_root', table: 'keys', of: '(tag_root, pepper_root, expires_at) WHERE revoked_at IS NULL' },
  { name: 'events_by_type', table: 'events', of: '(org_id, type, position)' },
  { name: 'events_by_actor', table: 'events', of: '(org_id, actor, position)' },
  { name: 'events_by_crew', table: 'events', of: "(org_id, split_part(mecha, '^', 2), position) WHERE mecha IS NOT NULL" },
  { name: 'events_by_mecha_and_type', table: 'events', of: '(mecha, type, position) WHERE mecha IS NOT NULL' },
  { name: 'events_by_time', table: 'events', of: '(org_id, at)' },
]

/**
 * Builds those that are missing, one after another. What an interrupted build left behind is built anew.
 *
 * @param giveUpAt until when locks are tried for, where one is needed: for a moment, on `events`
 * @returns the names of those that it built
 */
export async function buildIndexes(db: Kysely<any>, giveUpAt: () => number): Promise<string[]> {
  const { rows } = await sql<{ name: string }>`
    SELECT relname AS name FROM pg_index JOIN pg_class ON pg_class.oid = indexrelid
    WHERE indrelid = ANY(${[...new Set(INDEXES.map(({ table }) => table))]}::regclass[]) AND indisvalid`.execute(db)
  const built: string[] = []
  for (const index of INDEXES) {
    if (rows.some(({ name }) => name === index.name)) continue
    if (index.table === 'events') await buildOnPartitions(db, index, giveUpAt())
    else await buildOn(db, index.table, index.name, index.of)
    built.push(index.name)
  }
  return built
}

/** A partitioned table has no `CONCURRENTLY`. Each partition does, and what finds an index on every one of them builds nothing itself. */
async function buildOnPartitions(db: Kysely<any>, { name, table, of }: Index, giveUpAt: number): Promise<void> {
  // A partition may be renamed between two runs; its number stays.
  for (const { partition, number } of await partitionsOf(db, table)) await buildOn(db, partition, `${name}_${number}`, of)
  await givingWay(giveUpAt, () =>
    db.transaction().execute(async (trx) => {
      await limitLockWaits(trx)
      await sql`CREATE INDEX ${sql.id(name)} ON ${sql.id(table)} ${sql.raw(of)}`.execute(trx)
    }))
}

async function buildOn(db: Kysely<any>, table: string, name: string, of: string): Promise<void> {
  const state = await stateOf(db, name)
  if (state === 'valid') return
  if (state === 'invalid') await sql`DROP INDEX CONCURRENTLY ${sql.id(name)}`.execute(db)
  await sql`CREATE INDEX CONCURRENTLY ${sql.id(name)} ON ${sql.id(table)} ${sql.raw(of)}`.execute(db)
}

/** `invalid`: its building was interrupted. */
async function stateOf(db: Kysely<any>, name: string): Promise<'valid' | 'invalid' | 'missing'> {
  const { rows } = await sql<{ valid: boolean }>`SELECT indisvalid AS valid FROM pg_index WHERE indexrelid = to_regclass(${name})`.execute(db)
  return rows[0] === undefined ? 'missing' : rows[0].valid ? 'valid' : 'invalid'
}

async function partitionsOf(db: Kysely<any>, table: string): Promise<{ partition: string; number: string }[]> {
  const { rows } = await sql<{ partition: string; number: string }>`
    SELECT relname AS partition, inhrelid::text AS number FROM pg_inherits JOIN pg_class ON pg_class.oid = inhrelid WHERE inhparent = to_regclass(${table})`.execute(db)
  return rows
}
