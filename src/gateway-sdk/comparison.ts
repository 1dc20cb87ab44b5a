/**
 * Compares what is cached with what the database has: a second line of defence behind the stream of changes. The stream tells of
 * every change; where one was made that nothing told of, what is cached of it ends here, within a bound.
 *
 * Each entry is compared once within `afterMs`, in the order in which they were compared before and so many at a time that
 * they are spread evenly over it. What cannot be compared in time is dropped.
 */

import { moment, passed, type Moment } from './clock.js'
import type { CachedKey, KeyCache } from './cache.js'
import type { Version } from './client.js'

export interface ComparisonDeps {
  readonly cache: KeyCache
  readonly afterMs: number
  /** Resolves to the ids of those that the database no longer has so, or to `undefined` when it is another history that was asked. */
  readonly ask: (keys: readonly Version[]) => Promise<readonly string[] | undefined>
  /** These are no longer so, or nobody could say. */
  readonly onChanged: (keyIds: readonly string[], at: Moment) => void
}

/** In so many steps all are compared once. */
const STEPS = 60
const MIN_STEP_MS = 50
/** Parts of the time after which an entry is due, and after which it is dropped if it could not be compared. */
const DUE = 0.8
const DROP = 0.95
/** Keys in one request, at most. */
const MAX_BATCH = 1000

export class Comparison {
  readonly #timer: NodeJS.Timeout
  readonly #stepMs: number
  /** Entries whose turn it is, and what is left over of one. */
  #share = 0
  #running: Promise<void> | undefined
  #isStopped = false
  /** Entries that were as the database had them. */
  confirmed = 0
  /** Entries that were not, or could not be compared in time. */
  dropped = 0

  constructor(private readonly deps: ComparisonDeps) {
    this.#stepMs = Math.max(MIN_STEP_MS, deps.afterMs / STEPS)
    this.#timer = setInterval(() => (this.#running ??= this.#step().finally(() => (this.#running = undefined))), this.#stepMs).unref()
  }

  stop(): void {
    clearInterval(this.#timer)
    this.#isStopped = true
  }

  async #step(): Promise<void> {
    const { cache, afterMs } = this.deps
    const at = moment()
    this.#share += (cache.size * this.#stepMs) / (afterMs * DUE)
    const count = Math.floor(this.#share)
    this.#share -= count
    const due = cache.toCompare(count, ({ comparedAt }) => passed(comparedAt, at) >= afterMs * DUE)
    let isAnswered = true
    for (let start = 0; start < due.length && !this.#isStopped; start += MAX_BATCH) isAnswered = await this.#compare(due.slice(start, start + MAX_BATCH), isAnswered)
  }

  /**
   * @param isAsked whether the service is asked: not again in one step in which it did not answer
   * @returns whether it answered
   */
  async #compare(batch: readonly CachedKey[], isAsked: boolean): Promise<boolean> {
    const { cache, afterMs, onChanged } = this.deps
    const askedAt = moment()
    const keys = batch.flatMap(({ verdict: { key_id }, version }) => (version === undefined ? [] : [{ key_id, version }]))
    const changed = keys.length > 0 && isAsked ? await this.deps.ask(keys).catch(() => undefined) : undefined
    const at = moment()
    const ids = new Set(changed)
    const gone: string[] = []
    for (const entry of batch) {
      const { verdict, version, comparedAt } = entry
      // It was told of meanwhile, or pushed out.
      if (cache.byId(verdict.key_id) !== entry) continue
      if (changed !== undefined && version !== undefined && !ids.has(verdict.key_id)) {
        cache.compared(entry, askedAt)
        this.confirmed++
      } else if (ids.has(verdict.key_id) || passed(comparedAt, at) >= afterMs * DROP) gone.push(verdict.key_id)
    }
    this.dropped += gone.length
    if (gone.length > 0) onChanged(gone, at)
    return changed !== undefined || keys.length === 0
  }
}
