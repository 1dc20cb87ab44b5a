/**
 * How uses and refusals are written. Rows are locked in the order of their ids, so that replicas which write the same keys
 * wait for one another and never in a circle. No time is later than the database's own; one that is, from before its clock
 * went back, is replaced. `keys` is looked up one by one by its primary key: a join could be planned as a walk through all
 * of them.
 */

import { sql, type Kysely } from 'kysely'
import type { Database } from '../../db/tables.js'
import type { Refusal, Use } from './recorder.js'

/**
 * Writes times of last use, of many keys in one statement. A later time is never replaced by an earlier one. A use that was
 * reported counts if its key is one that the gateway may speak of; nothing is written of a key that was never used here.
 */
export async function recordUses(db: Kysely<Database>, uses: readonly Use[]): Promise<void> {
  await sql`
    WITH used AS MATERIALIZED (
      SELECT DISTINCT ON (key_id) key_id, least(at, clock_timestamp()) AS at, by
      FROM unnest(${uses.map(({ id }) => id)}::uuid[], ${timesOf(uses.map(({ usedAt }) => usedAt))}::timestamptz[], ${uses.map(({ usedBy }) => usedBy)}::uuid[],
                  ${uses.map(({ isReported }) => isReported ?? false)}::boolean[], ${uses.map(({ org_id }) => org_id)}::text[]) AS used (key_id, at, by, is_reported, org)
      WHERE NOT is_reported OR (SELECT true FROM keys WHERE id = key_id AND kind = 'mecha' AND (org IS NULL OR org_id = org))
      ORDER BY key_id, at DESC
    ), locked AS MATERIALIZED (
      SELECT key_id FROM key_usage WHERE key_id = ANY(${uses.map(({ id }) => id)}::uuid[]) ORDER BY key_id FOR NO KEY UPDATE
    )
    UPDATE key_usage SET last_used_at = used.at, last_used_by = used.by
    FROM locked JOIN used USING (key_id)
    WHERE key_usage.key_id = locked.key_id AND (key_usage.last_used_at < used.at OR key_usage.last_used_at > clock_timestamp())`.execute(db)
}

/** The same of times at which keys were refused. One that is not in the database any more is passed over. */
export async function recordRefusals(db: Kysely<Database>, refusals: readonly Refusal[]): Promise<void> {
  await sql`
    INSERT INTO key_refusals (key_id, last_refused_at, last_refused_code)
    SELECT key_id, least(at, clock_timestamp()), code
    FROM unnest(${refusals.map(({ id }) => id)}::uuid[], ${timesOf(refusals.map(({ at }) => at))}::timestamptz[], ${refusals.map(({ code }) => code)}::text[]) AS refused (key_id, at, code)
    WHERE (SELECT true FROM keys WHERE id = key_id)
    ORDER BY key_id
    ON CONFLICT (key_id) DO UPDATE SET last_refused_at = excluded.last_refused_at, last_refused_code = excluded.last_refused_code
    WHERE key_refusals.last_refused_at < excluded.last_refused_at OR key_refusals.last_refused_at > clock_timestamp()`.execute(db)
}

function timesOf(milliseconds: readonly number[]): Date[] {
  return milliseconds.map((at) => new Date(at))
}
