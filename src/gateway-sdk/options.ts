/** The options of a verifier: what they mean, what they are without being given, and what they may be. */

import type { Agent } from 'node:http'
import type { StreamLost } from './errors.js'
import { MAX_TOLERANCE_MS } from './signed.js'

export interface VerifierOptions {
  /** Where the service is: `https://keys.example.com`. Its runtime plane is all that is called. */
  readonly url: string
  /** The gateway's credential, `mgw_…`. */
  readonly credential: string
  /** The bound: longest that a key is answered from memory without word of changes, in milliseconds. 10,000 without it. */
  readonly maxStalenessMs?: number
  /** Longest wait for the service, in milliseconds. 2,000 without it. */
  readonly timeoutMs?: number
  /** Most keys cached. 100,000 without it. */
  readonly cacheMaxKeys?: number
  /** Most requests to the service under way at once. 64 without it. */
  readonly maxConcurrent?: number
  /** Most keys that wait for their turn; more are unavailable at once. 1,000 without it. */
  readonly maxWaiting?: number
  /** How far a signed request's timestamp may be from the service's clock, in milliseconds. 300,000 without it, 400,000 at most. */
  readonly clockToleranceMs?: number
  /** Within this, each cached key is compared once with what the database has, in milliseconds. 600,000 without it, 1,000 at least. */
  readonly revalidateAfterMs?: number
  /** How often uses of keys that were answered from memory are reported to the service, in milliseconds. 10,000 without it. */
  readonly usageIntervalMs?: number
  /** Called when the stream of changes is lost or refused, once until it is there again: `reason` says why. For a log: there is no key in it. */
  readonly onStreamLost?: (loss: StreamLost) => void
  /** Called with what a listener of yours throws, which stops nothing. A warning of the process without it. */
  readonly onError?: (error: unknown) => void
  /** For certificates or a proxy of your own; it has to keep connections. One of the verifier's own without it. */
  readonly agent?: Agent
}

/**
 * Fills in what is not given.
 *
 * @throws TypeError when an option is wrong; it names the option and never its value
 */
export function checkedOptions(options: VerifierOptions) {
  const {
    url, credential, maxStalenessMs = 10_000, timeoutMs = 2000, cacheMaxKeys = 100_000, maxConcurrent = 64, maxWaiting = 1000, clockToleranceMs = 300_000,
    revalidateAfterMs = 600_000, usageIntervalMs = 10_000,
  } = options
  if (!URL.canParse(url) || !/^https?:$/.test(new URL(url).protocol)) throw new TypeError('url must be an http or https URL')
  if (!/^[\x21-\x7e]+$/.test(credential)) throw new TypeError('credential must be a gateway credential, and nothing around it')
  const numbers = { maxStalenessMs, timeoutMs, cacheMaxKeys, maxConcurrent, maxWaiting, clockToleranceMs, revalidateAfterMs, usageIntervalMs }
  for (const [name, value] of Object.entries(numbers)) {
    const [least, most] = RANGES[name] ?? [1, MAX_TIMER_MS]
    if (!Number.isSafeInteger(value) || value < least || value > most) throw new TypeError(`${name} must be a whole number from ${least} to ${most}`)
  }
  return { ...options, ...numbers }
}

/** Longest that a timer of Node.js can wait, in milliseconds: with more it would not wait at all. */
const MAX_TIMER_MS = 2 ** 31 - 1
/** What options may be that may not be anything from 1 to {@link MAX_TIMER_MS}. */
const RANGES: Readonly<Record<string, readonly [number, number]>> = {
  maxWaiting: [0, MAX_TIMER_MS],
  clockToleranceMs: [1, MAX_TOLERANCE_MS],
  revalidateAfterMs: [1000, MAX_TIMER_MS],
}
