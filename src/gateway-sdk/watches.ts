/** Who wants to know when a key is no longer vouched for: open sockets, above all. */

import { moment, passed, type Moment } from './clock.js'
import type { CachedKey } from './cache.js'
import { callListener, type Report } from './report.js'

/** Why a key is no longer vouched for. */
export type EndReason =
  /** It was revoked, disabled, replaced or otherwise changed, or may have been. */
  | 'changed'
  /** It has come to its end. */
  | 'expired'
  /** Nothing has vouched for it for a good part of the bound. */
  | 'stale'
  /** The verifier was closed. */
  | 'closed'

export interface End {
  readonly reason: EndReason
  /** How long the bound still lets the key be taken for what it was, in milliseconds: time to ask the service about it. */
  readonly leftMs: number
}

export type WatchListener = (end: End) => void

interface Watch {
  readonly keyId: string
  readonly listener: WatchListener
  /** What vouches for the key: the answer by which it was good. */
  cached: CachedKey
  /** Parts of the bound that have to be left, and of the time within which an answer has to be renewed. Random, so that many that were opened or lost the stream together do not ask together. */
  readonly leastLeft: number
  readonly mostAge: number
}

/** What the watches look at, besides what they are told. */
export interface Vouching {
  /** Whether the stream vouches for what was current. */
  isFresh(mono: number, wall: number): boolean
  /** How long the stream's last confirmation still holds. */
  leftMs(at: Moment): number
  /** The database's clock. */
  now(mono: number, wall: number): number
}

export interface WatchesDeps {
  readonly stream: Vouching
  /** What is cached of a key. */
  readonly find: (keyId: string) => CachedKey | undefined
  /** The bound. */
  readonly maxStalenessMs: number
  /** How old an answer may be, whatever vouches for it. */
  readonly revalidateAfterMs: number
  readonly report: Report
}

/** How often all are looked at. */
const TICK_MS = 100
/** How old an answer gets, at most, that is from before a change that has been told. */
const UNSETTLED_MS = 1000

export class Watches {
  readonly #byKey = new Map<string, Set<Watch>>()
  #size = 0
  #timer: NodeJS.Timeout | undefined

  constructor(private readonly deps: WatchesDeps) {}

  get size(): number {
    return this.#size
  }

  /** @returns what ends the watch without a call */
  add(cached: CachedKey, listener: WatchListener): () => void {
    const keyId = cached.verdict.key_id
    const watch = { keyId, listener, cached, leastLeft: between(0.3, 0.6), mostAge: between(0.5, 0.95) }
    const watches = this.#byKey.get(keyId) ?? new Set()
    this.#byKey.set(keyId, watches.add(watch))
    this.#size++
    this.#timer ??= setInterval(() => this.#look(), TICK_MS).unref()
    return () => this.#remove(watch)
  }

  changed(keyIds: readonly string[], at: Moment): void {
    for (const id of keyIds) for (const watch of this.#byKey.get(id) ?? []) this.#end(watch, 'changed', this.#leftMs(watch, at))
  }

  /** Any key may have changed. */
  allChanged(at: Moment): void {
    for (const watch of this.#all()) this.#end(watch, 'changed', this.#leftMs(watch, at))
  }

  close(): void {
    for (const watch of this.#all()) this.#end(watch, 'closed', 0)
  }

  /** The clocks, and not a timer for each: a process that was stopped finds out when it goes on. */
  #look(): void {
    const { stream, maxStalenessMs, revalidateAfterMs } = this.deps
    const at = moment()
    const isFresh = stream.isFresh(at.mono, at.wall)
    const streamLeft = isFresh ? stream.leftMs(at) : -Infinity
    const now = stream.now(at.mono, at.wall)
    const isDue = ({ cached: { comparedAt, isCurrent }, leastLeft, mostAge }: Watch) => {
      const age = passed(comparedAt, at)
      const renewMs = isCurrent ? revalidateAfterMs : Math.min(UNSETTLED_MS, maxStalenessMs / 2)
      return Math.max(maxStalenessMs - age, isCurrent ? streamLeft : -Infinity) < maxStalenessMs * leastLeft || (isFresh && age > renewMs * mostAge)
    }
    for (const watch of this.#all()) {
      if (isFresh && watch.cached.expiresAt <= now) this.#end(watch, 'expired', 0)
      else if (isDue(watch) && !(this.#renew(watch) && !isDue(watch))) this.#end(watch, 'stale', this.#leftMs(watch, at))
    }
  }

  /** Takes a later answer about the same key for its own, if the key was then as it was before: another socket's, for instance. */
  #renew(watch: Watch): boolean {
    const { cached } = watch
    const later = this.deps.find(watch.keyId)
    if (!later || later === cached || later.digest !== cached.digest || later.version === undefined || later.version !== cached.version) return false
    watch.cached = later
    return true
  }

  /** How long the bound still lets the key be taken for what it was. */
  #leftMs({ cached: { comparedAt, isCurrent } }: Watch, at: Moment): number {
    const { stream, maxStalenessMs } = this.deps
    const left = Math.max(maxStalenessMs - passed(comparedAt, at), isCurrent ? stream.leftMs(at) : -Infinity)
    // No timer is to the millisecond, and none may be late.
    return Math.max(0, left - TICK_MS)
  }

  #end(watch: Watch, reason: EndReason, leftMs: number): void {
    if (this.#remove(watch)) callListener(this.deps.report, watch.listener, { reason, leftMs })
  }

  #remove(watch: Watch): boolean {
    const watches = this.#byKey.get(watch.keyId)
    if (!watches?.delete(watch)) return false
    this.#size--
    if (watches.size === 0) this.#byKey.delete(watch.keyId)
    if (this.#byKey.size === 0) {
      clearInterval(this.#timer)
      this.#timer = undefined
    }
    return true
  }

  #all(): Watch[] {
    return [...this.#byKey.values()].flatMap((watches) => [...watches])
  }
}

function between(low: number, high: number): number {
  return low + (high - low) * Math.random()
}
