/**
 * A second line of defence behind the feed: what is in memory is compared with the database from time to time, so that
 * even a change that no feed told of counts within a bound. The comparisons are spread over that time, in statements of
 * many keys each.
 */

import type { FastifyBaseLogger } from 'fastify'
import { isCurrent, type CachedKey } from '../verify/credential-cache.js'
import type { Fence } from '../verify/fence.js'
import type { CachedVersion } from './store.js'

export interface RevalidationDeps {
  readonly fence: Pick<Fence, 'current' | 'invalidate'>
  /** Which of some keys are not in the database in the version that is cached. */
  readonly findChanged: (cached: readonly CachedVersion[]) => Promise<{ readonly changed: readonly string[] }>
  /** Longest time after which a cached key has been compared. */
  readonly afterMs: number
  readonly log: FastifyBaseLogger
}

/** Between two looks at what is due. */
const TICK_MS = 1000
/** Keys in one statement: at least, unless the round is at its end, and at most. */
const FEWEST = 100
const MOST = 2000

export class Revalidation {
  /** Keys of this round that have not been compared. A key that comes into memory later is compared in the next round. */
  #left: CachedKey[] = []
  /** How many keys this round has. */
  #size = 0
  #ticksLeft = 0
  #timer: NodeJS.Timeout | undefined
  #isComparing = false
  /** How many of those compared had changed. */
  changed = 0

  constructor(private readonly deps: RevalidationDeps) {}

  start(): void {
    // Two rounds in the time, so that none waits for longer than it from when it came.
    const roundMs = this.deps.afterMs / 2
    const tickMs = Math.min(TICK_MS, roundMs / 4)
    this.#timer = setInterval(() => void this.#tick(Math.floor(roundMs / tickMs)), tickMs).unref()
  }

  stop(): void {
    clearInterval(this.#timer)
  }

  async #tick(ticksOfRound: number): Promise<void> {
    if (this.#isComparing) return
    if (this.#ticksLeft === 0) {
      // What a database that was away has left over is in this round again.
      this.#left = [...this.deps.fence.current()]
      this.#size = this.#left.length
      this.#ticksLeft = ticksOfRound
    }
    this.#ticksLeft--
    // All of them by the last tick but one, so that a late one does not make the round longer; and none before its share of the time has passed.
    const mayBeLeft = Math.ceil((this.#size * Math.max(0, this.#ticksLeft - 1)) / ticksOfRound)
    this.#isComparing = true
    try {
      while (this.#left.length - mayBeLeft >= (mayBeLeft > 0 ? FEWEST : 1)) await this.#compare(Math.min(this.#left.length - mayBeLeft, MOST))
    } catch (error) {
      // They stay where they are: without a database, nothing is answered from memory for long.
      this.deps.log.debug({ err: error }, 'keys in memory could not be compared with the database')
    } finally {
      this.#isComparing = false
    }
  }

  /** Compares the last of those that are left. */
  async #compare(count: number): Promise<void> {
    const keys = this.#left.slice(-count)
    const { changed } = await this.deps.findChanged(keys.filter(isCurrent))
    this.#left.length -= keys.length
    this.changed += changed.length
    this.deps.fence.invalidate(changed)
  }
}
