/**
 * Which replicas may be alive, as this process has seen it for itself. A replica that has confirmed nothing for its bound
 * answers nothing from memory any more, and needs not be waited for. No single clock is trusted about that: neither the
 * database's, by which `seen_at` is written, nor the wall clock here alone. A replica is gone when this process has seen its row
 * unchanged for its bound, by both the monotonic and the wall clock.
 */

import type { ReplicaRow, ReplicasReading } from './store.js'

interface Seen {
  /** What changes with every confirmation. */
  readonly mark: string
  /** How old this process was when it first saw the row so, or first missed it. */
  readonly since: number
  readonly boundMs: number
  readonly isMissing: boolean
}

export interface Living {
  /** Those of the history that was read. */
  readonly replicas: readonly ReplicaRow[]
  /** Whether there may be others: of another history, or such as vanished from the table without having ended properly. */
  readonly hasOthers: boolean
}

export class ReplicaWatch {
  readonly #seen = new Map<string, Seen>()
  /** Milliseconds that have passed for certain since this watch was made. */
  #age = 0
  #monotonic = performance.now()
  #wall = Date.now()

  /** @param defaultBoundMs of replicas of the previous release, which do not say it */
  constructor(private readonly defaultBoundMs: number) {}

  /** Replicas that this process has seen, to find out which of them have ended properly. */
  get known(): string[] {
    return [...this.#seen.keys()]
  }

  /**
   * Milliseconds that have passed for certain: the smaller of what both clocks say, from one look at them to the next. A
   * clock that was set back costs no more than the time since the last look.
   */
  age(): number {
    const [monotonic, wall] = [performance.now(), Date.now()]
    this.#age += Math.max(0, Math.min(monotonic - this.#monotonic, wall - this.#wall))
    this.#monotonic = monotonic
    this.#wall = wall
    return this.#age
  }

  /**
   * Takes in what was read.
   *
   * @param askedAt the age when the database was asked: what was read is no older
   */
  take({ history, replicas, farewells }: Pick<ReplicasReading, 'history' | 'replicas' | 'farewells'>, askedAt: number): Living {
    const age = this.age()
    const living = replicas.filter((row) => {
      const boundMs = row.bound_ms ?? this.defaultBoundMs
      const seen = this.#seen.get(row.id)
      const isUnmoved = seen !== undefined && !seen.isMissing && seen.mark === row.mark
      if (!isUnmoved) this.#seen.set(row.id, { mark: row.mark, since: age, boundMs, isMissing: false })
      return !isUnmoved || askedAt - seen.since <= boundMs
    })
    const isMissing = this.#takeMissing(new Set(replicas.map(({ id }) => id)), new Set(farewells), askedAt, age)
    // The previous release does not say of which history it is.
    const ofHistory = living.filter((row) => row.history === null || row.history === history)
    return { replicas: ofHistory, hasOthers: isMissing || ofHistory.length < living.length }
  }

  /** Whether a replica may be alive whose row is gone. A replica that ends properly removes its row; a restore removes rows as well. */
  #takeMissing(present: ReadonlySet<string>, farewells: ReadonlySet<string>, askedAt: number, age: number): boolean {
    let mayLive = false
    for (const [id, seen] of this.#seen) {
      if (present.has(id)) continue
      const isOver = farewells.has(id) || (seen.isMissing && askedAt - seen.since > seen.boundMs)
      if (isOver) this.#seen.delete(id)
      else mayLive = true
      if (!isOver && !seen.isMissing) this.#seen.set(id, { ...seen, since: age, isMissing: true })
    }
    return mayLive
  }
}
