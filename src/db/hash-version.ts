/** Which version of argon2's input a new hash may have while replicas of the previous release are served beside this one. */

import { sql, type Kysely } from 'kysely'
import type { Pepper } from '../credentials/hash.js'
import type { Database } from './tables.js'

/** How soon it is asked again whether the last replica of the previous release is gone. */
const ASK_AGAIN_MS = 10_000

/**
 * A replica of the release that knows the first version only refuses a key of the second (503 `root_secret_missing`), so
 * none is made while one is alive. It is told by its row of `replicas`, which has no secret; the row of one that was killed
 * is swept within the hour.
 */
export function hashVersion(db: Kysely<Database>): () => Promise<Pepper['version']> {
  let version: Promise<Pepper['version']> | undefined
  let askedAt = -Infinity
  return async () => {
    if (version && ((await version) === 2 || performance.now() - askedAt < ASK_AGAIN_MS)) return version
    askedAt = performance.now()
    version = newestVersion(db)
    version.catch(() => (version = undefined))
    return version
  }
}

async function newestVersion(db: Kysely<Database>): Promise<Pepper['version']> {
  const { rows } = await sql<{ old: boolean }>`SELECT EXISTS (SELECT FROM replicas WHERE secret_digest IS NULL) AS old`.execute(db)
  return rows[0]!.old ? 1 : 2
}
