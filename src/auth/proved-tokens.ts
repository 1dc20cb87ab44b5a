/**
 * Operators' tokens whose signature has been checked: a frontend sends one with many requests, and to check it each time
 * took a sixth of what it takes to issue a key (`docs/performance.md`). Held by a keyed digest, never as they came.
 */

import { LRUCache } from 'lru-cache'
import { createDigest } from '../key/digest.js'

const MOST = 10_000
/** Longest that a token counts after its issuer's keys were last asked. */
const MOST_MS = 60_000

interface Proved<Caller> {
  readonly caller: Caller
  /** On the wall clock, in milliseconds: looked at each time. */
  readonly endsAt: number
}

export class ProvedTokens<Caller extends object> {
  readonly #digest = createDigest()
  readonly #tokens: LRUCache<string, Proved<Caller>>

  /** @param keysMaxAgeMs how long the issuer's keys are used before they are fetched again: a token is not held for longer */
  constructor(keysMaxAgeMs: number) {
    this.#tokens = new LRUCache({ max: MOST, ttl: Math.min(MOST_MS, keysMaxAgeMs) })
  }

  find(token: string): Caller | undefined {
    // Looked up by the whole digest, whose key nobody else has: how long that takes tells nothing of a token.
    const proved = this.#tokens.get(this.#digest(token))
    return proved && Date.now() < proved.endsAt ? proved.caller : undefined
  }

  keep(token: string, caller: Caller, endsAt: number): void {
    this.#tokens.set(this.#digest(token), { caller, endsAt })
  }
}
