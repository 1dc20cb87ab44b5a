/** What receipts ask of the database: which transactions changed some keys, and which replicas have applied these. */

import { sql, type Kysely } from 'kysely'
import { HISTORY } from '../../db/history.js'
import type { Database } from '../../db/tables.js'

/** What has to be applied of some keys, and in which history that was read. */
export interface FoundChange {
  readonly history: string
  /** Transactions. One that is no longer in the feed is older than any replica can be behind. */
  readonly xids: string[]
  /** How many of the keys are revoked. */
  readonly revoked: number
}

export async function findChange(db: Kysely<Database>, keyIds: readonly string[]): Promise<FoundChange> {
  const { rows } = await sql<FoundChange>`
    SELECT ${sql.raw(HISTORY)} AS history,
           ARRAY(SELECT DISTINCT xid::text FROM changes WHERE key_id = ANY(${keyIds}::uuid[])) AS xids,
           (SELECT count(*)::int FROM keys WHERE id = ANY(${keyIds}::uuid[]) AND revoked_at IS NOT NULL) AS revoked`.execute(db)
  return rows[0]!
}

export interface ReplicaRow {
  readonly id: string
  /** `null` in rows of the previous release, as is the bound. */
  readonly history: string | null
  readonly bound_ms: number | null
  /** What changes with every confirmation. */
  readonly mark: string
  /** Which of the given transactions it has not applied. */
  readonly unseen: readonly string[]
}

export interface ReplicasReading {
  readonly history: string
  readonly replicas: readonly ReplicaRow[]
  /** Which of the known replicas have ended properly. */
  readonly farewells: readonly string[]
  /** True after a restore that was not accepted yet: what replicas had applied is unknown then. */
  readonly is_on_hold: boolean
}

/** Every row of `replicas`. A row of the previous release has a time in place of a beat, which is compared with no clock. */
export async function readReplicas(db: Kysely<Database>, xids: readonly string[], known: readonly string[]): Promise<ReplicasReading> {
  const { rows } = await sql<ReplicasReading>`
    SELECT ${sql.raw(HISTORY)} AS history,
           (SELECT coalesce(json_agg(json_build_object(
              'id', id, 'history', history, 'bound_ms', bound_ms, 'mark', concat_ws(' ', beat, history, snapshot, CASE WHEN bound_ms IS NULL THEN seen_at END),
              'unseen', ARRAY(SELECT xid::text FROM unnest(${xids}::xid8[]) AS xid WHERE NOT pg_visible_in_snapshot(xid, snapshot)))), '[]') FROM replicas) AS replicas,
           ARRAY(SELECT id FROM farewells WHERE id = ANY(${known}::uuid[])) AS farewells,
           restore_hold() IS NOT NULL AS is_on_hold`.execute(db)
  return rows[0]!
}
