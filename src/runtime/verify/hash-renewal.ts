/** Rows that were hashed under an older pepper, with an older input or with other parameters are hashed again after a good verify. */

import type { FastifyBaseLogger } from 'fastify'
import type { Kysely } from 'kysely'
import { isOutdated, nameOfPepper, type Pepper } from '../../credentials/hash.js'
import type { Hasher } from '../../credentials/hash-queue.js'
import type { Roots } from '../../credentials/roots.js'
import type { Token } from '../../credentials/token.js'
import type { Database } from '../../db/tables.js'
import { hashInputOf } from './secret-prover.js'
import { replaceHash, type CredentialRow } from './store.js'

export interface HashRenewalDeps {
  readonly db: Kysely<Database>
  readonly roots: Roots
  readonly hasher: Hasher
  /** Whether all replicas hash with the same parameters. */
  readonly hashAlike: () => Promise<boolean>
  readonly log: FastifyBaseLogger
}

export class HashRenewal {
  /** Ids of the rows that are being hashed again. */
  readonly #renewing = new Set<string>()

  constructor(private readonly deps: HashRenewalDeps) {}

  /**
   * Hashes a row again where that makes it better. No answer waits for it, and it never throws. Rows that have nothing but other parameters are
   * hashed one at a time: their hashes are as good as ever, which is no reason to write every key at once.
   */
  async renew(row: CredentialRow, token: Token): Promise<void> {
    const { db, roots, hasher, hashAlike, log } = this.deps
    const [root] = roots
    const isMadeAs = (version: Pepper['version']) => row.pepper_root === nameOfPepper({ root, version })
    const hasOtherCost = isOutdated(row.hash, hasher.profile)
    if ((isMadeAs(2) && (!hasOtherCost || this.#renewing.size > 0)) || this.#renewing.has(row.id)) return
    this.#renewing.add(row.id)
    try {
      const isForNothing = isMadeAs(await hasher.version()) && !(hasOtherCost && (await hashAlike()))
      if (!isForNothing) await replaceHash(db, row, await hasher.hash(hashInputOf(row, token), root))
    } catch (error) {
      // The key is as good as before, and its next verify tries again.
      log.warn({ err: error }, 'a hash could not be renewed')
    } finally {
      this.#renewing.delete(row.id)
    }
  }
}
