/** How often somebody may call in a minute. */

import rateLimit, { type FastifyRateLimitStore } from '@fastify/rate-limit'
import type { FastifyInstance } from 'fastify'
import { LRUCache } from 'lru-cache'
import { Problem } from '../errors.js'

const WINDOW_MS = 60_000
/** How many callers are counted at once. The ones that called longest ago are forgotten first. */
const COUNTED_CALLERS = 10_000

/**
 * Counts of callers, each in a minute of its own. The plugin's own counts start anew by the wall clock: where that was set
 * back by an hour, a caller that had reached the limit would stay refused for as long.
 */
export class CallCounts {
  /** Created with the first call, because it allocates room for all callers at once. */
  #counts: LRUCache<string, { calls: number; readonly since: number }> | undefined

  /** Counts a call: how many there were by now, and in how many milliseconds they are forgotten. */
  count(caller: string): { calls: number; endsInMs: number } {
    const now = performance.now()
    const counts = (this.#counts ??= new LRUCache({ max: COUNTED_CALLERS }))
    const before = counts.get(caller)
    const count = before && now - before.since < WINDOW_MS ? before : { calls: 0, since: now }
    count.calls++
    counts.set(caller, count)
    return { calls: count.calls, endsInMs: WINDOW_MS - (now - count.since) }
  }
}

/**
 * Lets each address call the routes of a scope so often in a minute, a /64 of IPv6 being one. Whoever calls more often is
 * refused before anything is read of the request: the answer says nothing of it, and a flood keeps no other address away.
 */
export async function limitAddresses(app: FastifyInstance, perMinute: number): Promise<void> {
  await app.register(rateLimit, {
    max: perMinute,
    timeWindow: WINDOW_MS,
    store: Counts,
    addHeadersOnExceeding: { 'x-ratelimit-limit': false, 'x-ratelimit-remaining': false, 'x-ratelimit-reset': false },
    addHeaders: { 'x-ratelimit-limit': false, 'x-ratelimit-remaining': false, 'x-ratelimit-reset': false, 'retry-after': false },
    errorResponseBuilder: (_request, { ttl }) => tooManyCalls('Wait, or call from another address.', ttl),
  })
}

/** The answer to one call too many. */
export function tooManyCalls(detail: string, endsInMs: number): Problem {
  return new Problem('rate_limited', detail, { headers: { 'retry-after': String(Math.ceil(endsInMs / 1000)) } })
}

class Counts implements FastifyRateLimitStore {
  readonly #counts = new CallCounts()

  incr(address: string, done: Parameters<FastifyRateLimitStore['incr']>[1]): void {
    const { calls, endsInMs } = this.#counts.count(address)
    done(null, { current: calls, ttl: endsInMs })
  }

  child(): FastifyRateLimitStore {
    return new Counts()
  }
}
