/** Which keys are no longer in the version that somebody has cached. */

import { sql, type Kysely } from 'kysely'
import { history, type OfHistory } from '../../db/history.js'
import type { Database } from '../../db/tables.js'

/** A key in the version that somebody has cached. */
export interface CachedVersion {
  readonly id: string
  readonly version: number
}

/**
 * Which of some keys are not, or no longer, there in the version that is cached.
 *
 * @param asker the gateway that asks: whose keys it knows, `null` for everybody's. Without one the service asks for itself, of gateways' credentials as well
 */
export async function findChanged(db: Kysely<Database>, cached: readonly CachedVersion[], asker?: { readonly orgId: string | null }): Promise<OfHistory & { readonly changed: string[] }> {
  const { kind, orgId } = asker ? { kind: 'mecha', orgId: asker.orgId } : { kind: null, orgId: null }
  const { rows } = await sql<OfHistory & { changed: string[] }>`
    SELECT ${history} AS history, ARRAY(
      SELECT cached.id::text FROM unnest(${cached.map(({ id }) => id)}::uuid[], ${cached.map(({ version }) => version)}::float8[]) AS cached (id, version)
      LEFT JOIN keys ON keys.id = cached.id AND (${kind}::text IS NULL OR kind = ${kind}) AND (${orgId}::text IS NULL OR org_id = ${orgId})
      WHERE keys.xmin::text::float8 IS DISTINCT FROM cached.version) AS changed`.execute(db)
  return rows[0]!
}
