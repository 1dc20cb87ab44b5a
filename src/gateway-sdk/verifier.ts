/**
 * Verifies Mecha keys for a gateway: from memory where it may, and by asking the service where it must.
 *
 * What is in memory is vouched for by the service's stream of changes, for `maxStalenessMs` after the last moment up to
 * which everything has been told. Past that, the service is asked about each key; where it does not answer, nobody knows,
 * and {@link VerifierUnavailable} says so.
 *
 * It is one function over some 200 lines because its steps share one state: whether it is closed, what is cached, and what is asked for.
 */

import type { Requirements } from '../protocol/verdict.js'
import { KeyCache } from './cache.js'
import { Service, type Answer } from './client.js'
import { moment, passed, type Moment } from './clock.js'
import { Comparison } from './comparison.js'
import { ConcurrencyLimit } from './concurrency-limit.js'
import { VerifierUnavailable } from './errors.js'
import { checkedOptions, type VerifierOptions } from './options.js'
import { callListener, createReport } from './report.js'
import { createSignedVerifier } from './signed.js'
import { ChangeStream } from './stream.js'
import { UsageReporter } from './usage.js'
import { judge, type Verdict } from './verdict.js'
import type { Verifier, VerifierState } from './verifier-types.js'
import { Watches, type WatchListener } from './watches.js'

/** How often a key that changes while it is asked about is asked about again: each time, something was really changed. */
const ATTEMPTS = 3
/** Longer than any key: nothing of this length needs to be sent anywhere. */
const MAX_KEY_LENGTH = 1024
const SCHEME = 'secret-token:'
const NO_REQUIREMENTS: Requirements = {}

/** @throws TypeError when an option is wrong */
export function createVerifier(given: VerifierOptions): Verifier {
  const options = checkedOptions(given)
  const { maxStalenessMs, timeoutMs, cacheMaxKeys, maxConcurrent, revalidateAfterMs, onStreamLost } = options
  const counts = { hits: 0, asked: 0, unavailable: 0, otherHistory: 0, changes: 0, resets: 0, streamsLost: 0 }
  const report = createReport(options.onError)
  const service = new Service(options)
  const cache = new KeyCache(cacheMaxKeys)
  /** Keys that are asked about, by digest: who wants the same joins, unless a change was told meanwhile. */
  const asking = new Map<string, Promise<Verdict>>()
  const stream = new ChangeStream({
    open: (lastEventId, signal) => service.follow(lastEventId, signal),
    maxStalenessMs,
    onChanged(keyIds, at) {
      counts.changes += keyIds.length
      drop(keyIds, at)
    },
    onReset(at) {
      counts.resets++
      cache.dropAll(at.mono)
      asking.clear()
      watches.allChanged(at)
    },
    onLost(loss) {
      counts.streamsLost++
      if (onStreamLost) callListener(report, onStreamLost, loss)
    },
  })
  const watches = new Watches({ stream, find: (keyId) => cache.byId(keyId), maxStalenessMs, revalidateAfterMs, report })
  const comparison = new Comparison({
    cache,
    afterMs: revalidateAfterMs,
    async ask(keys) {
      const { changed, history } = await service.revalidate(keys)
      return isOfStream(history) === true ? changed : undefined
    },
    onChanged: drop,
  })
  const usage = new UsageReporter({ report: (uses) => service.reportUses(uses), intervalMs: options.usageIntervalMs, max: cacheMaxKeys, onError: report })
  const verifySigned = createSignedVerifier({
    verify: async (key, requirements) => verify(key, requirements),
    useNonce: (keyId, nonce, expiresAt) => service.useNonce(keyId, nonce, expiresAt),
    now: () => stream.now(),
    isClockInDoubt: () => stream.isClockInDoubt(),
    clockToleranceMs: options.clockToleranceMs,
  })
  /** For keys whose holders can wait, as open sockets can: how many are asked about at once, and which of them wait, by digest. */
  const limit = new ConcurrencyLimit(Math.ceil(maxConcurrent / 2))
  const queued = new Map<string, Promise<Verdict>>()
  let isClosed = false
  stream.start()

  function verify(presented: string, requirements: Requirements = NO_REQUIREMENTS): Verdict | Promise<Verdict> {
    if (isClosed) throw closed()
    const key = bareKey(presented)
    if (key.length > MAX_KEY_LENGTH) return { valid: false, code: 'malformed' }
    const mono = performance.now()
    const wall = Date.now()
    if (stream.isFresh(mono, wall)) {
      const found = cache.find(key)
      const now = stream.now(mono, wall)
      if (found && found.expiresAt > now) {
        counts.hits++
        const verdict = judge(found.verdict, requirements)
        if (verdict.valid) usage.seen(found, now)
        return verdict
      }
    }
    return join(key).then((verdict) => judge(verdict, requirements))
  }

  async function ask(presented: string, requirements: Requirements = NO_REQUIREMENTS): Promise<Verdict> {
    if (isClosed) throw closed()
    const key = bareKey(presented)
    if (key.length > MAX_KEY_LENGTH) return { valid: false, code: 'malformed' }
    const name = cache.digest(key)
    let answer = queued.get(name)
    if (!answer) {
      answer = joinWhenAdmitted(key, name)
      queued.set(name, answer)
    }
    return judge(await answer, requirements)
  }

  async function joinWhenAdmitted(key: string, name: string): Promise<Verdict> {
    await limit.acquire()
    // Who comes from now on may have heard of more than this one.
    queued.delete(name)
    try {
      if (isClosed) throw closed()
      return await join(key)
    } finally {
      limit.release()
    }
  }

  /** One request for all who ask about the same key, whatever else each requires of it. */
  function join(key: string): Promise<Verdict> {
    const name = cache.digest(key)
    const before = asking.get(name)
    if (before) return before
    const answer = askService(key)
    asking.set(name, answer)
    const over = () => asking.get(name) === answer && asking.delete(name)
    answer.then(over, over)
    return answer
  }

  async function askService(key: string): Promise<Verdict> {
    const begun = moment()
    for (let attempt = 1; ; attempt++) {
      const askedAt = moment()
      const { verdict, ageMs, history, version } = await answerOf(key)
      const isSame = isOfStream(history)
      if (isSame === undefined) {
        const left = timeoutMs - passed(begun, moment())
        if (attempt >= ATTEMPTS || left <= 0) throw unavailable(otherHistory())
        await stream.nextConfirmation(left)
        if (isClosed) throw closed()
        continue
      }
      if (!verdict.valid) return verdict
      // A change was told while the answer was on its way: it may be from before.
      if (cache.hasChangedSince(verdict.key_id, askedAt) && attempt < ATTEMPTS) continue
      return cache.keep(key, verdict, { askedAt, ageMs: isSame ? ageMs : Infinity, version }).verdict
    }
  }

  async function answerOf(key: string): Promise<Answer> {
    counts.asked++
    const answer = await service.verify(key).catch((error: unknown) => {
      throw isClosed ? closed() : unavailable(error)
    })
    if (isClosed) throw closed()
    return answer
  }

  function unavailable(error: unknown): unknown {
    counts.unavailable++
    return error
  }

  /**
   * Whether an answer comes from the history of the database that the stream tells of. `false` when the one or the other does not
   * say, and `undefined` when it comes from another one: nobody knows then which of them is the truth.
   */
  function isOfStream(history: string | undefined): boolean | undefined {
    const own = stream.history(moment())
    if (history === undefined || own === undefined) return history === own
    if (history === own) {
      stream.agree()
      return true
    }
    counts.otherHistory++
    stream.dispute()
    return undefined
  }

  function drop(keyIds: readonly string[], at: Moment): void {
    cache.drop(keyIds, at.mono)
    asking.clear()
    watches.changed(keyIds, at)
  }

  function watch(keyId: string, listener: WatchListener): () => void {
    const found = cache.byId(keyId)
    if (found && !isClosed) return watches.add(found, listener)
    // Not to be called before it has returned.
    const timer = setTimeout(() => callListener(report, listener, { reason: isClosed ? 'closed' : 'changed', leftMs: 0 }), 0)
    return () => clearTimeout(timer)
  }

  function state(): VerifierState {
    const { confirmed: revalidated, dropped: revalidatedChanged } = comparison
    const { reported: usesReported, lost: usesLost } = usage
    return {
      isFresh: stream.isFresh(),
      freshSince: stream.freshSince ?? null,
      confirmedAt: stream.confirmedAt ?? null,
      streamLoss: stream.loss ?? null,
      cached: cache.size,
      watched: watches.size,
      asking: service.running,
      waiting: service.waiting + limit.waiting,
      counts: { ...counts, revalidated, revalidatedChanged, usesReported, usesLost },
    }
  }

  async function close(): Promise<void> {
    isClosed = true
    watches.close()
    cache.dropAll(Infinity)
    comparison.stop()
    await Promise.all([stream.stop(), usage.stop(timeoutMs)])
    service.close()
  }

  return { verify, ask, verifySigned, watch, isFresh: () => stream.isFresh(), state, report, close }
}

function bareKey(presented: string): string {
  return presented.startsWith(SCHEME) ? presented.slice(SCHEME.length) : presented
}

function closed(): VerifierUnavailable {
  return new VerifierUnavailable('closed', 'the verifier has been closed')
}

function otherHistory(): VerifierUnavailable {
  return new VerifierUnavailable('service_unavailable', 'answers come from another history of the database than the stream of changes')
}
