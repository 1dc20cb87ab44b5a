/**
 * What those have missed who come back to the feed. When a replica ends, all who followed it come back at once, to any other one and most of
 * them from the same position: they are asked for together, and each position once.
 */

import { setImmediate, setTimeout as sleep } from 'node:timers/promises'

interface Waiting<T> {
  readonly position: string
  readonly resolve: (missed: T | undefined) => void
}

/** Between two questions, so that who comes meanwhile is in the next one. Who comes alone is asked for at once. */
const PAUSE_MS = 50
/** Positions in one question: it stands before what else its connection is asked. */
const MOST_POSITIONS = 10
/** How many are answered at a stretch: some milliseconds. */
const MOST_WAITING = 100

export class Missed<T> {
  #waiting: Waiting<T>[] = []
  #isAsking = false

  /** @param ask finds what was missed since each of some positions; what it has no answer for, nobody knows */
  constructor(private readonly ask: (positions: readonly string[]) => Promise<ReadonlyMap<string, T>>) {}

  /** What was missed since a position, as a question knows it that is sent from now on. */
  since(position: string): Promise<T | undefined> {
    return new Promise((resolve) => {
      this.#waiting.push({ position, resolve })
      if (!this.#isAsking) void this.#askForAll()
    })
  }

  /** Nothing may come between an answer and those who wait for it: what happens after it, they are told in another way. */
  async #askForAll(): Promise<void> {
    this.#isAsking = true
    while (this.#waiting.length > 0) {
      const [positions, asking] = this.#take()
      const missed = await this.ask([...positions]).catch(() => new Map<string, T>())
      for (const { position, resolve } of asking) resolve(missed.get(position))
      await (this.#waiting.length >= MOST_WAITING ? setImmediate() : sleep(PAUSE_MS))
    }
    this.#isAsking = false
  }

  /** Those who are answered next, the first first. */
  #take(): [ReadonlySet<string>, readonly Waiting<T>[]] {
    const positions = new Set<string>()
    const isNext = ({ position }: Waiting<T>, i: number) => i < MOST_WAITING && (positions.size < MOST_POSITIONS || positions.has(position)) && positions.add(position)
    const asking = this.#waiting.filter(isNext)
    const taken = new Set(asking)
    this.#waiting = this.#waiting.filter((one) => !taken.has(one))
    return [positions, asking]
  }
}
