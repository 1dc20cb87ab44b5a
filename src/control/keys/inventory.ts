/** The number of keys by status and the age of the signing key, for metrics. Read at most once a minute, and only when metrics are read. */

import { sql, type Kysely } from 'kysely'
import { SAMPLE_PERCENT } from '../../db/sample.js'
import type { Database } from '../../db/tables.js'
import type { KeyStatus } from '../../credentials/status.js'

export interface Inventory {
  readonly keys: Readonly<Record<KeyStatus, number>>
  /** Seconds since the key that signs now began to; `null` where there is none. */
  readonly signingKeyAge: number | null
}

const MAX_AGE_MS = 60_000

/**
 * Returns the last inventory without waiting for the database. One that is too old is read again in the background, for the next call.
 */
export function watchInventory(db: Kysely<Database>, onError: (error: unknown) => void): () => Inventory | undefined {
  let last: Inventory | undefined
  let readAt = -Infinity
  return () => {
    if (performance.now() - readAt > MAX_AGE_MS) {
      readAt = performance.now()
      readInventory(db).then((inventory) => (last = inventory), onError)
    }
    return last
  }
}

/** Exact for a small table; of a larger one a sample of its blocks is counted and scaled, so that a read of metrics never reads millions of rows. */
async function readInventory(db: Kysely<Database>): Promise<Inventory> {
  const { rows } = await sql<Record<KeyStatus, number> & { age: number | null }>`
    WITH sampled AS (
      SELECT CASE WHEN revoked_at IS NOT NULL THEN 'revoked' WHEN expires_at <= now() THEN 'expired' WHEN enabled THEN 'active' ELSE 'disabled' END AS status
      FROM keys TABLESAMPLE SYSTEM (${SAMPLE_PERCENT}) WHERE kind = 'mecha'
    ), counted AS (
      SELECT status, round(count(*) * 100 / ${SAMPLE_PERCENT})::float8 AS keys FROM sampled GROUP BY status
    )
    SELECT coalesce(max(keys) FILTER (WHERE status = 'active'), 0) AS active, coalesce(max(keys) FILTER (WHERE status = 'disabled'), 0) AS disabled,
           coalesce(max(keys) FILTER (WHERE status = 'expired'), 0) AS expired, coalesce(max(keys) FILTER (WHERE status = 'revoked'), 0) AS revoked,
           (SELECT extract(epoch FROM now() - max(signs_from))::float8 FROM signing_keys WHERE signs_from <= now()) AS age
    FROM counted`.execute(db)
  const { age, ...keys } = rows[0]!
  return { keys, signingKeyAge: age }
}
