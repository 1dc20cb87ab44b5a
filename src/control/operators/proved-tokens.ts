/**
 * A cache of operators' tokens whose signature has been checked: a frontend sends the same one with many requests, and checking it
 * each time took a sixth of what it takes to issue a key (`docs/performance.md`). It has keyed digests of tokens, never the tokens.
 */

import { LRUCache } from 'lru-cache'
import { createDigest } from '../../credentials/digest.js'

const MOST = 10_000
/** How long a checked token is accepted at most without another check. */
const MOST_MS = 60_000

/** Times on the wall clock, in milliseconds, compared with each use. The cache's own clock stands still while the machine sleeps. */
interface Proved<Caller> {
  readonly caller: Caller
  readonly provedAt: number
  readonly endsAt: number
}

export class ProvedTokens<Caller extends object> {
  readonly #digest = createDigest()
  readonly #tokens: LRUCache<string, Proved<Caller>>

  readonly #maxAgeMs: number

  /** @param keysMaxAgeMs how long the issuer's keys are used before they are fetched again: a token is not cached for longer */
  constructor(keysMaxAgeMs: number) {
    this.#maxAgeMs = Math.min(MOST_MS, keysMaxAgeMs)
    this.#tokens = new LRUCache({ max: MOST, ttl: this.#maxAgeMs })
  }

  find(token: string): Caller | undefined {
    // Looked up by a digest whose key is only in this process, so that the time it takes gives nothing of a token away.
    const proved = this.#tokens.get(this.#digest(token))
    const now = Date.now()
    // A time before the check means that the clock was set back, and says nothing about how long ago the check was.
    return proved && now >= proved.provedAt && now < proved.endsAt ? proved.caller : undefined
  }

  /** @param expiresAt the token's own end, in milliseconds */
  keep(token: string, caller: Caller, expiresAt: number): void {
    const provedAt = Date.now()
    this.#tokens.set(this.#digest(token), { caller, provedAt, endsAt: Math.min(expiresAt, provedAt + this.#maxAgeMs) })
  }
}
