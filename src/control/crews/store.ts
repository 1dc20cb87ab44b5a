/** What reserving crews asks of the database. */

import { sql, type Kysely, type Transaction } from 'kysely'
import type { Database } from '../../db/tables.js'

export interface CrewRecord {
  readonly crew: string
  readonly org_id: string
  readonly reserved_at: Date
}

export async function findCrew(db: Kysely<Database>, crew: string): Promise<CrewRecord | undefined> {
  return db.selectFrom('crews').selectAll().where('crew', '=', crew).executeTakeFirst()
}

export async function listCrews(db: Kysely<Database>): Promise<CrewRecord[]> {
  return db.selectFrom('crews').selectAll().orderBy('crew').execute()
}

/** Waits for transactions that take a handle, and keeps others waiting until the transaction ends. */
export async function lockNewMechas(trx: Transaction<Database>): Promise<void> {
  await sql`LOCK TABLE mechas IN SHARE ROW EXCLUSIVE MODE`.execute(trx)
}

export async function insertCrew(trx: Transaction<Database>, crew: string, orgId: string): Promise<void> {
  await trx.insertInto('crews').values({ crew, org_id: orgId }).execute()
}

export async function deleteCrew(trx: Transaction<Database>, crew: string): Promise<CrewRecord | undefined> {
  return trx.deleteFrom('crews').where('crew', '=', crew).returningAll().executeTakeFirst()
}

/** Organizations other than this one that have Mechas in a crew. */
export async function countMechasOfOthers(db: Kysely<Database>, crew: string, orgId: string): Promise<{ org_id: string; mechas: number }[]> {
  return db
    .selectFrom('mechas')
    .select(['org_id', sql<number>`count(*)::int`.as('mechas')])
    .where(sql<string>`split_part(handle, '^', 2)`, '=', crew).where('org_id', '!=', orgId)
    .groupBy('org_id').orderBy('org_id')
    .execute()
}
