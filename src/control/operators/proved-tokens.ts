/**
 * Operators' tokens whose signature has been checked: a frontend sends one with many requests, and to check it each time
 * took a sixth of what it takes to issue a key (`docs/performance.md`). Held by a keyed digest, never as they came.
 */

import { LRUCache } from 'lru-cache'
import { createDigest } from '../../credentials/digest.js'

const MOST = 10_000
/** Longest that a token counts after its issuer's keys were last asked. */
const MOST_MS = 60_000

/** Times on the wall clock, in milliseconds, looked at each time. The cache's own clock stands still while the machine sleeps. */
interface Proved<Caller> {
  readonly caller: Caller
  readonly provedAt: number
  readonly endsAt: number
}

export class ProvedTokens<Caller extends object> {
  readonly #digest = createDigest()
  readonly #tokens: LRUCache<string, Proved<Caller>>

  readonly #maxAgeMs: number

  /** @param keysMaxAgeMs how long the issuer's keys are used before they are fetched again: a token is not held for longer */
  constructor(keysMaxAgeMs: number) {
    this.#maxAgeMs = Math.min(MOST_MS, keysMaxAgeMs)
    this.#tokens = new LRUCache({ max: MOST, ttl: this.#maxAgeMs })
  }

  find(token: string): Caller | undefined {
    // Looked up by the whole digest, whose key nobody else has: how long that takes tells nothing of a token.
    const proved = this.#tokens.get(this.#digest(token))
    const now = Date.now()
    // Before it was proved: the clock was set back, and says nothing about how long ago that was.
    return proved && now >= proved.provedAt && now < proved.endsAt ? proved.caller : undefined
  }

  /** @param expiresAt the token's own end, in milliseconds */
  keep(token: string, caller: Caller, expiresAt: number): void {
    const provedAt = Date.now()
    this.#tokens.set(this.#digest(token), { caller, provedAt, endsAt: Math.min(expiresAt, provedAt + this.#maxAgeMs) })
  }
}
