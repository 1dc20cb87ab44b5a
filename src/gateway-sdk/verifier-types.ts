/** What a gateway has of a verifier. `createVerifier` makes one. */

import type { Requirements } from '../protocol/verdict.js'
import type { StreamLossReason } from './errors.js'
import type { SignedRequestParts, SignedVerdict } from './signed.js'
import type { Verdict } from './verdict.js'
import type { WatchListener } from './watches.js'

export interface Verifier {
  /**
   * Says whether a key is good, for this Mecha and these scopes. Not a promise where the key is cached and vouched for.
   *
   * @param key as it was presented; `secret-token:` in front of it (RFC 8959) is fine
   * @throws VerifierUnavailable (or rejects with it) when nobody can say now: answer 503
   */
  verify(key: string, requirements?: Requirements): Verdict | Promise<Verdict>
  /**
   * As {@link Verifier.verify}, but asks the service even if the key is cached: when nothing has vouched for a key for a while. For what can
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
  /** Keys that are cached. */
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
    /** Cached keys that were compared with the database and were as it had them. */
    readonly revalidated: number
    /** Cached keys that were not, or could not be compared in time. */
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
