/** Receipts: how many of the replicas that are alive have applied a change. */

import { setTimeout as sleep } from 'node:timers/promises'
import type { Kysely } from 'kysely'
import { databaseFailure } from '../../db/outage.js'
import type { Database } from '../../db/tables.js'
import { ReplicaWatch, type Living } from './replicas.js'
import { findChange, readReplicas, type ReplicasReading } from './store.js'

export interface Propagation {
  /** Replicas that are alive, of the history in which the change was made. */
  readonly replicas: number
  /** Those of them that have applied the change. */
  readonly confirmed: number
  /** True if no replica that may be alive answers by what was before the change. Never true without a replica. */
  readonly complete: boolean
  /** How long this call has waited for them. */
  readonly elapsed_ms: number
}

/** Between two reads for open receipts. */
const INTERVAL_MS = 10

/** A receipt that is open. */
interface Waiting {
  /** The transactions that have to be applied: every one, for of two the one that began first may commit last. */
  readonly xids: readonly string[]
  readonly history: string
  /** Whether the change is there in that history. */
  readonly isMade: boolean
  readonly start: number
  readonly waitMs: number
  readonly resolve: (propagation: Propagation | null) => void
  readonly reject: (error: unknown) => void
}

/** The receipts of a process. One loop reads for all that are open, and ends with the last of them. */
export class Receipts {
  readonly #watch: ReplicaWatch
  readonly #waiting = new Set<Waiting>()
  #isReading = false

  /** @param defaultBoundMs how long replicas of the previous release may answer from memory */
  constructor(
    private readonly db: Kysely<Database>,
    defaultBoundMs: number,
  ) {
    this.#watch = new ReplicaWatch(defaultBoundMs)
  }

  /**
   * Waits until every living replica has applied all changes of some keys, or the time is over. A replica that is gone
   * drops out when its row was seen unmoved for as long as it may serve from memory: by then it does not any more.
   *
   * @param keyIds UUIDs
   * @param change.waitSeconds longest wait; 0 asks once
   * @param change.isRevocation the keys are revoked: where they are not, this is another history than the one that said so
   * @returns `null` when the database does not say: what the call did stands all the same
   */
  async of(keyIds: readonly string[], { waitSeconds, isRevocation }: { readonly waitSeconds: number; readonly isRevocation: boolean }): Promise<Propagation | null> {
    const start = performance.now()
    try {
      const { history, xids, revoked } = await findChange(this.db, keyIds)
      const isMade = !isRevocation || revoked === new Set(keyIds).size
      return await new Promise((resolve, reject) => {
        this.#waiting.add({ xids, history, isMade, start, waitMs: waitSeconds * 1000, resolve, reject })
        if (!this.#isReading) void this.#readUntilSettled()
      })
    } catch (error) {
      if (databaseFailure(error)) return null
      throw error
    }
  }

  async #readUntilSettled(): Promise<void> {
    this.#isReading = true
    while (this.#waiting.size > 0) {
      // A receipt that is opened during this read waits for the next one: this one may be from before its change.
      const batch = [...this.#waiting]
      try {
        const askedAt = this.#watch.age()
        const reading = await readReplicas(this.db, [...new Set(batch.flatMap(({ xids }) => xids))], this.#watch.known)
        const living = this.#watch.take(reading, askedAt)
        for (const waiting of batch) this.#settle(waiting, living, reading)
      } catch (error) {
        for (const waiting of batch) {
          this.#waiting.delete(waiting)
          waiting.reject(error)
        }
      }
      if (this.#waiting.size > 0) await sleep(INTERVAL_MS)
    }
    this.#isReading = false
  }

  /** Closes a receipt when there is no replica to wait for any more, or no time left. */
  #settle(waiting: Waiting, { replicas, hasOthers }: Living, { history, is_on_hold }: ReplicasReading): void {
    const mine = new Set(waiting.xids)
    const confirmed = is_on_hold ? 0 : replicas.filter(({ unseen }) => !unseen.some((xid) => mine.has(xid))).length
    const isOver = confirmed === replicas.length && !hasOthers
    const elapsed = performance.now() - waiting.start
    if (!isOver && elapsed + INTERVAL_MS <= waiting.waitMs) return
    this.#waiting.delete(waiting)
    const complete = isOver && replicas.length > 0 && waiting.isMade && waiting.history === history
    waiting.resolve({ replicas: replicas.length, confirmed, complete, elapsed_ms: Math.round(elapsed) })
  }
}
