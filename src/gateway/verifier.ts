/**
 * Verifies Mecha keys for a gateway: from memory where it may, and by asking the service where it must.
 *
 * What is in memory is vouched for by the service's stream of changes, for `maxStalenessMs` after the last moment up to
 * which everything has been told. Past that, the service is asked about each key; where it does not answer, nobody knows,
 * and {@link VerifierUnavailable} says so.
 */

import type { Agent } from 'node:http'
import { HeldKeys } from './held.js'
import { Service } from './service.js'
import { createSignedVerifier, MAX_TOLERANCE_MS, type SignedRequestParts, type SignedVerdict } from './signed.js'
import { ChangeStream } from './stream.js'
import { judge, VerifierUnavailable, type Demand, type Verdict } from './verdict.js'
import { Watches, type WatchListener } from './watches.js'

export interface VerifierOptions {
  /** Where the service is: `https://keys.example.com`. Its runtime plane is all that is called. */
  readonly url: string
  /** The gateway's credential, `mgw_…`. */
  readonly credential: string
  /** The bound: longest that a key is answered from memory without word of changes, in milliseconds. 10,000 without it. */
  readonly maxStalenessMs?: number
  /** Longest wait for the service, in milliseconds. 2,000 without it. */
  readonly timeoutMs?: number
  /** Most keys held in memory. 100,000 without it. */
  readonly cacheMaxKeys?: number
  /** Most requests to the service under way at once. 64 without it. */
  readonly maxConcurrent?: number
  /** Most keys that wait for their turn; more are unavailable at once. 1,000 without it. */
  readonly maxWaiting?: number
  /** How far a signed request's timestamp may be from the service's clock, in milliseconds. 300,000 without it, 400,000 at most. */
  readonly clockToleranceMs?: number
  /** Called when the stream of changes is lost or refused, once until it is there again. For a log: there is no key in it. */
  readonly onStreamLost?: (error: unknown) => void
  /** For certificates or a proxy of your own; it has to keep connections. One of the verifier's own without it. */
  readonly agent?: Agent
}

export interface Verifier {
  /**
   * Says whether a key is good, for this Mecha and these scopes. Not a promise where the key is held and vouched for.
   *
   * @param key as it was presented; `secret-token:` in front of it (RFC 8959) is fine
   * @throws VerifierUnavailable (or rejects with it) when nobody can say now: answer 503
   */
  verify(key: string, demand?: Demand): Verdict | Promise<Verdict>
  /**
   * Says whether a signed request is good: made by the holder of a good key, as it came, in time, and not let pass before.
   *
   * @throws VerifierUnavailable (or rejects with it) when nobody can say now: answer 503
   */
  verifySigned(request: SignedRequestParts, demand?: Demand): Promise<SignedVerdict>
  /**
   * Calls once when a key, just verified, is no longer vouched for: it changed, it ended, or the bound has passed. Ask
   * about the key again, or close what it opened.
   *
   * @param keyId `key_id` of the verdict
   * @returns what ends the watch without a call
   */
  watch(keyId: string, listener: WatchListener): () => void
  /** Whether memory is vouched for now: for a metric or an alert. */
  isFresh(): boolean
  /** Ends the stream and all watches. What is asked from now on is unavailable. */
  close(): Promise<void>
}

/** How often a key that changes while it is asked about is asked about again: each time, something was really changed. */
const ATTEMPTS = 3
/** Longer than any key: nothing of this length needs to be sent anywhere. */
const MAX_KEY_LENGTH = 1024
/** How soon a key that could not be held is to be asked about again, while somebody watches it. */
const UNSETTLED_MS = 1000
const SCHEME = 'secret-token:'
const NOTHING: Demand = {}

/** @throws TypeError when an option is wrong */
export function createVerifier(options: VerifierOptions): Verifier {
  const { url, credential, maxStalenessMs, timeoutMs, cacheMaxKeys, maxConcurrent, maxWaiting, clockToleranceMs, onStreamLost, agent } = checked(options)
  const service = new Service({ url, credential, timeoutMs, maxConcurrent, maxWaiting, ...(agent && { agent }) })
  const held = new HeldKeys(cacheMaxKeys)
  /** Keys that are asked about, by digest: who wants the same joins, unless a change was told meanwhile. */
  const asking = new Map<string, Promise<Verdict>>()
  const stream = new ChangeStream({
    open: (lastEventId, signal) => service.follow(lastEventId, signal),
    maxStalenessMs,
    onChanged(keyIds, at) {
      held.drop(keyIds, at)
      asking.clear()
      watches.changed(keyIds, stream.leftMs(at))
    },
    onReset(at) {
      held.dropAll(at)
      asking.clear()
      watches.end({ reason: 'changed', leftMs: stream.leftMs(at) })
    },
    onLost: (error) => onStreamLost?.(error),
  })
  const watches = new Watches(stream)
  const verifySigned = createSignedVerifier({
    verify: async (key, demand) => verify(key, demand),
    useNonce: (keyId, nonce, expiresAt) => service.useNonce(keyId, nonce, expiresAt),
    now: () => stream.now(),
    clockToleranceMs,
  })
  let isClosed = false
  stream.start()

  function verify(presented: string, demand: Demand = NOTHING): Verdict | Promise<Verdict> {
    if (isClosed) throw closed()
    const key = presented.startsWith(SCHEME) ? presented.slice(SCHEME.length) : presented
    if (key.length > MAX_KEY_LENGTH) return { valid: false, code: 'malformed' }
    const at = performance.now()
    if (stream.isFresh(at)) {
      const found = held.find(key)
      if (found && found.expiresAt > stream.now(at)) return judge(found.verdict, demand)
    }
    return join(key).then((verdict) => judge(verdict, demand))
  }

  /** One request for all who ask about the same key, whatever they demand of it. */
  function join(key: string): Promise<Verdict> {
    const name = held.digest(key)
    const before = asking.get(name)
    if (before) return before
    const answer = ask(key)
    asking.set(name, answer)
    const over = () => asking.get(name) === answer && asking.delete(name)
    answer.then(over, over)
    return answer
  }

  async function ask(key: string): Promise<Verdict> {
    for (let attempt = 1; ; attempt++) {
      const askedAt = performance.now()
      const { verdict, ageMs } = await service.verify(key).catch((error: unknown) => {
        throw isClosed ? closed() : error
      })
      if (isClosed) throw closed()
      if (!verdict.valid) return verdict
      // A change was told while the answer was on its way: it may be from before.
      if (held.hasChangedSince(verdict.key_id, askedAt) && attempt < ATTEMPTS) continue
      return held.keep(key, verdict, askedAt, ageMs)
    }
  }

  function watch(keyId: string, listener: WatchListener): () => void {
    const at = performance.now()
    const found = held.byId(keyId)
    if (!isClosed && found?.isCurrent && stream.isFresh(at)) return watches.add(keyId, found.expiresAt, listener)
    // Not to be called before it has returned.
    const leftMs = isClosed || !found ? 0 : Math.max(0, found.askedAt + maxStalenessMs - at)
    const delay = Math.min(UNSETTLED_MS, leftMs / 2)
    const timer = setTimeout(() => listener({ reason: isClosed ? 'closed' : 'changed', leftMs: leftMs - delay }), delay)
    return () => clearTimeout(timer)
  }

  async function close(): Promise<void> {
    isClosed = true
    watches.end({ reason: 'closed', leftMs: 0 })
    held.dropAll(Infinity)
    await stream.stop()
    service.close()
  }

  return { verify, verifySigned, watch, isFresh: () => stream.isFresh(), close }
}

/** With what is not given filled in. Messages name the option and never its value. */
function checked(options: VerifierOptions) {
  const { url, credential, maxStalenessMs = 10_000, timeoutMs = 2000, cacheMaxKeys = 100_000, maxConcurrent = 64, maxWaiting = 1000, clockToleranceMs = 300_000 } = options
  if (!URL.canParse(url) || !/^https?:$/.test(new URL(url).protocol)) throw new TypeError('url must be an http or https URL')
  if (!/^[\x21-\x7e]+$/.test(credential)) throw new TypeError('credential must be a gateway credential, and nothing around it')
  for (const [name, value] of Object.entries({ maxStalenessMs, timeoutMs, cacheMaxKeys, maxConcurrent, clockToleranceMs }))
    if (!Number.isSafeInteger(value) || value < 1) throw new TypeError(`${name} must be a whole number of 1 or more`)
  if (!Number.isSafeInteger(maxWaiting) || maxWaiting < 0) throw new TypeError('maxWaiting must be a whole number of 0 or more')
  if (clockToleranceMs > MAX_TOLERANCE_MS) throw new TypeError(`clockToleranceMs may be ${MAX_TOLERANCE_MS} at most`)
  return { ...options, clockToleranceMs, maxStalenessMs, timeoutMs, cacheMaxKeys, maxConcurrent, maxWaiting }
}

function closed(): VerifierUnavailable {
  return new VerifierUnavailable('closed', 'the verifier has been closed')
}
