/** How the nonce of a signed request is taken: once, whichever replica is asked. */

import { sql, type Kysely } from 'kysely'
import { history, type OfHistory } from '../../db/history.js'
import type { Database } from '../../db/tables.js'

/** A nonce that a gateway wants to take. */
export interface Nonce {
  readonly keyId: string
  /** The organization whose keys the gateway may speak of, or `null` for all. */
  readonly orgId: string | null
  readonly digest: Buffer
  /** From when on the gateway that asks refuses the request by its timestamp. */
  readonly expiresAt: Date
  /** Shortest that it is kept, in seconds, whatever the gateway asks for. */
  readonly minTtl: number
  /** How far ahead `expiresAt` may be, in seconds. */
  readonly maxTtl: number
}

/** What comes of wanting a nonce. */
export type NonceOutcome = 'taken' | 'taken_before' | 'untimely' | 'no_key'

/**
 * Takes a nonce unless it has been taken: of many who ask at once, whichever replica they ask, one does. It is kept until no
 * gateway accepts the request any more, and what has expired is swept; see `take_nonce` in the migrations.
 */
export async function takeNonce(db: Kysely<Database>, { keyId, orgId, digest, expiresAt, minTtl, maxTtl }: Nonce): Promise<OfHistory & { readonly outcome: NonceOutcome }> {
  const { rows } = await sql<OfHistory & { outcome: NonceOutcome }>`
    SELECT ${history} AS history, take_nonce(${keyId}::uuid, ${orgId}::text, ${digest}::bytea, ${expiresAt}::timestamptz, ${minTtl}::integer, ${maxTtl}::integer) AS outcome`.execute(db)
  return rows[0]!
}
