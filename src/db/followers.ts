/**
 * Advisory locks by which followers of the change feed can be told apart, and who hashes with what parameters among them. Each holds
 * them, shared, on the feed's own connection, for as long as that lasts: locks end with it, and with the server.
 */

import { sql, type Kysely } from 'kysely'
import type { Database } from './tables.js'

/** Names a run of the server: `mech` in ASCII. Followers of the previous release hold this one alone. */
export const RUN_LOCK = 0x6d656368
/** Names the parameters of argon2 that this follower hashes with: `cost` in ASCII. */
export const COST_LOCK = 0x636f7374

/** How soon it is asked again whether all followers hash alike. */
const ASK_AGAIN_MS = 10_000

/**
 * Whether every follower hashes with the same parameters. Where two do not, during a roll-over, each would hash again what the other one
 * has just hashed, for as long as both are asked about a key.
 *
 * @param cost the number of this one's parameters
 */
export function hashAlike(db: Kysely<Database>, cost: number): () => Promise<boolean> {
  let answer: Promise<boolean> | undefined
  let askedAt = -Infinity
  return () => {
    if (answer && performance.now() - askedAt < ASK_AGAIN_MS) return answer
    askedAt = performance.now()
    answer = areAlike(db, cost)
    answer.catch(() => (answer = undefined))
    return answer
  }
}

async function areAlike(db: Kysely<Database>, cost: number): Promise<boolean> {
  const { rows } = await sql<{ alike: boolean }>`
    WITH held AS (
      SELECT pid, classid::bigint, objid::bigint FROM pg_locks
      WHERE locktype = 'advisory' AND objsubid = 2 AND granted AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
    )
    SELECT NOT EXISTS (
      SELECT FROM held AS follower WHERE classid = ${RUN_LOCK} AND NOT EXISTS (SELECT FROM held WHERE pid = follower.pid AND classid = ${COST_LOCK} AND objid = ${cost})
    ) AS alike`.execute(db)
  return rows[0]!.alike
}
