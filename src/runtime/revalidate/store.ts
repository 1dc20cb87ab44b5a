/** Which keys are no longer in the version that somebody has cached. */

import { sql, type Kysely } from 'kysely'
import { history, type OfHistory } from '../../db/history.js'
import type { Database } from '../../db/tables.js'

/** A key in a version that somebody holds of it. */
export interface HeldVersion {
  readonly id: string
  readonly version: number
}

/**
 * Which of some keys are not, or no longer, there in the version that is held of them.
 *
 * @param asker the gateway that asks: whose keys it knows, `null` for everybody's. Without one the service asks for itself, of gateways' credentials as well
 */
export async function findChanged(db: Kysely<Database>, held: readonly HeldVersion[], asker?: { readonly orgId: string | null }): Promise<OfHistory & { readonly changed: string[] }> {
  const { kind, orgId } = asker ? { kind: 'mecha', orgId: asker.orgId } : { kind: null, orgId: null }
  const { rows } = await sql<OfHistory & { changed: string[] }>`
    SELECT ${history} AS history, ARRAY(
      SELECT held.id::text FROM unnest(${held.map(({ id }) => id)}::uuid[], ${held.map(({ version }) => version)}::float8[]) AS held (id, version)
      LEFT JOIN keys ON keys.id = held.id AND (${kind}::text IS NULL OR kind = ${kind}) AND (${orgId}::text IS NULL OR org_id = ${orgId})
      WHERE keys.xmin::text::float8 IS DISTINCT FROM held.version) AS changed`.execute(db)
  return rows[0]!
}
