/**
 * Verifies Mecha keys for a gateway: from memory where it may, and by asking the service where it must.
 *
 * What is in memory is vouched for by the service's stream of changes, for `maxStalenessMs` after the last moment up to
 * which everything has been told. Past that, the service is asked about each key; where it does not answer, nobody knows,
 * and {@link VerifierUnavailable} says so.
 */

import type { Agent } from 'node:http'
import { moment, passed, type Moment } from './clock.js'
import { Comparison } from './comparison.js'
import { HeldKeys } from './cache.js'
import { callListener, createReport } from './report.js'
import { Service, type Answer } from './client.js'
import { createSignedVerifier, MAX_TOLERANCE_MS, type SignedRequestParts, type SignedVerdict } from './signed.js'
import { ChangeStream } from './stream.js'
import { Turns } from './turns.js'
import { UsageReporter } from './usage.js'
import type { Requirements } from '../protocol/verdict.js'
import { VerifierUnavailable, type StreamLossReason, type StreamLost } from './errors.js'
import { judge, type Verdict } from './verdict.js'
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
  /** Within this, each key held is compared once with what the database has, in milliseconds. 600,000 without it, 1,000 at least. */
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

export interface Verifier {
  /**
   * Says whether a key is good, for this Mecha and these scopes. Not a promise where the key is held and vouched for.
   *
   * @param key as it was presented; `secret-token:` in front of it (RFC 8959) is fine
   * @throws VerifierUnavailable (or rejects with it) when nobody can say now: answer 503
   */
  verify(key: string, requirements?: Requirements): Verdict | Promise<Verdict>
  /**
   * As {@link Verifier.verify}, but asks the service whatever is held: when nothing has vouched for a key for a while. For what can
   * wait, as open sockets can: half of `maxConcurrent` are asked about at once, and the others one after another.
   */
  ask(key: string, requirements?: Requirements): Promise<Verdict>
  /**
   * Says whether a signed request is good: made by the holder of a good key, as it came, in time, and not let pass before.
   *
   * @throws VerifierUnavailable (or rejects with it) when nobody can say now: answer 503
   */
  verifySigned(request: SignedRequestParts, requirements?: Requirements): Promise<SignedVerdict>
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
  /** How the verifier is, and what it has done so far: for metrics and for a page of status. */
  state(): VerifierState
  /** Tells `onError` of what a listener threw. */
  report(error: unknown): void
  /** Ends the stream and all watches, and reports the last uses. What is asked from now on is unavailable. */
  close(): Promise<void>
}

export interface VerifierState {
  /** Whether memory is vouched for now. */
  readonly isFresh: boolean
  /** Since when it is; `null` when it is not. */
  readonly freshSince: Date | null
  /** Up to when everything has been told, on this machine's clock; `null` before there was a stream. */
  readonly confirmedAt: Date | null
  /** Why there is no stream of changes now; `null` when there is one. */
  readonly streamLoss: StreamLossReason | null
  /** Keys held. */
  readonly cached: number
  /** Watches, of open sockets above all. */
  readonly watched: number
  /** Requests to the service under way. */
  readonly asking: number
  /** Requests, and keys of open sockets, that wait for their turn. */
  readonly waiting: number
  /** Since the verifier was made. */
  readonly counts: {
    /** Verifies that were answered from memory. */
    readonly hits: number
    /** Times that the service was asked about a key. */
    readonly asked: number
    /** Times that it could not say. */
    readonly unavailable: number
    /** Answers that were not used because they came from another history of the database than the stream of changes. */
    readonly otherHistory: number
    /** Keys held that were compared with the database and were as it had them. */
    readonly revalidated: number
    /** Keys held that were not, or could not be compared in time. */
    readonly revalidatedChanged: number
    /** Changes that the stream told of, in keys. */
    readonly changes: number
    /** Times that everything was dropped. */
    readonly resets: number
    /** Times that the stream was lost. */
    readonly streamsLost: number
    /** Uses of keys that were reported, and those that were not and will not be. */
    readonly usesReported: number
    readonly usesLost: number
  }
}

/** How often a key that changes while it is asked about is asked about again: each time, something was really changed. */
const ATTEMPTS = 3
/** Longer than any key: nothing of this length needs to be sent anywhere. */
const MAX_KEY_LENGTH = 1024
const SCHEME = 'secret-token:'
const NO_REQUIREMENTS: Requirements = {}

/** @throws TypeError when an option is wrong */
export function createVerifier(given: VerifierOptions): Verifier {
  const options = checked(given)
  const { maxStalenessMs, timeoutMs, cacheMaxKeys, maxConcurrent, revalidateAfterMs, onStreamLost } = options
  const counts = { hits: 0, asked: 0, unavailable: 0, otherHistory: 0, changes: 0, resets: 0, streamsLost: 0 }
  const report = createReport(options.onError)
  const service = new Service(options)
  const held = new HeldKeys(cacheMaxKeys)
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
      held.dropAll(at.mono)
      asking.clear()
      watches.allChanged(at)
    },
    onLost(loss) {
      counts.streamsLost++
      if (onStreamLost) callListener(report, onStreamLost, loss)
    },
  })
  const watches = new Watches({ stream, find: (keyId) => held.byId(keyId), maxStalenessMs, revalidateAfterMs, report })
  const comparison = new Comparison({
    held,
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
  /** Turns of keys whose holders can wait, and those keys that wait for one, by digest. */
  const turns = new Turns(Math.ceil(maxConcurrent / 2))
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
      const found = held.find(key)
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
    const name = held.digest(key)
    let answer = queued.get(name)
    if (!answer) {
      answer = joinInTurn(key, name)
      queued.set(name, answer)
    }
    return judge(await answer, requirements)
  }

  async function joinInTurn(key: string, name: string): Promise<Verdict> {
    await turns.take()
    // Who comes from now on may have heard of more than this one.
    queued.delete(name)
    try {
      if (isClosed) throw closed()
      return await join(key)
    } finally {
      turns.leave()
    }
  }

  /** One request for all who ask about the same key, whatever else each requires of it. */
  function join(key: string): Promise<Verdict> {
    const name = held.digest(key)
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
      if (held.hasChangedSince(verdict.key_id, askedAt) && attempt < ATTEMPTS) continue
      return held.keep(key, verdict, { askedAt, ageMs: isSame ? ageMs : Infinity, version }).verdict
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
    held.drop(keyIds, at.mono)
    asking.clear()
    watches.changed(keyIds, at)
  }

  function watch(keyId: string, listener: WatchListener): () => void {
    const found = held.byId(keyId)
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
      cached: held.size,
      watched: watches.size,
      asking: service.running,
      waiting: service.waiting + turns.waiting,
      counts: { ...counts, revalidated, revalidatedChanged, usesReported, usesLost },
    }
  }

  async function close(): Promise<void> {
    isClosed = true
    watches.close()
    held.dropAll(Infinity)
    comparison.stop()
    await Promise.all([stream.stop(), usage.stop(timeoutMs)])
    service.close()
  }

  return { verify, ask, verifySigned, watch, isFresh: () => stream.isFresh(), state, report, close }
}

/** With what is not given filled in. Messages name the option and never its value. */
function checked(options: VerifierOptions) {
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

function bareKey(presented: string): string {
  return presented.startsWith(SCHEME) ? presented.slice(SCHEME.length) : presented
}

function closed(): VerifierUnavailable {
  return new VerifierUnavailable('closed', 'the verifier has been closed')
}

function otherHistory(): VerifierUnavailable {
  return new VerifierUnavailable('service_unavailable', 'answers come from another history of the database than the stream of changes')
}
