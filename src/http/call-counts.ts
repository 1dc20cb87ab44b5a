/** How often each address has called, for `@fastify/rate-limit`. */

import type { FastifyRateLimitStore, FastifyRateLimitStoreCtor } from '@fastify/rate-limit'
import { LRUCache } from 'lru-cache'

/**
 * Counts of the addresses that have called last. The plugin's own counts start anew by the wall clock: where that was set
 * back by an hour, an address that had reached the limit would stay refused for as long.
 */
export function callCounts(addresses: number): FastifyRateLimitStoreCtor {
  return class Counts implements FastifyRateLimitStore {
    readonly #counts = new LRUCache<string, { current: number; readonly since: number }>({ max: addresses })

    incr(address: string, done: Parameters<FastifyRateLimitStore['incr']>[1], timeWindow: number): void {
      const now = performance.now()
      const before = this.#counts.get(address)
      const count = before && now - before.since < timeWindow ? before : { current: 0, since: now }
      count.current++
      this.#counts.set(address, count)
      done(null, { current: count.current, ttl: timeWindow - (now - count.since) })
    }

    child(): FastifyRateLimitStore {
      return new Counts()
    }
  }
}
