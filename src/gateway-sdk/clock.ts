/**
 * How much time has passed, by whichever of this process's two clocks says more. The monotonic clock stands still while the
 * machine is suspended, and the wall clock can be set. Where one has jumped against the other, nobody knows.
 */

/** A moment, as both clocks show it. */
export interface Moment {
  /** Monotonic, in milliseconds. */
  readonly mono: number
  /** In milliseconds since 1970. */
  readonly wall: number
}

/** Clocks that go apart by more than this have jumped: the machine was suspended, or one of them was set. */
export const JUMP_MS = 1000
/** How late a timer may be that was set before the machine was suspended. */
const LATE_MS = 500

export function moment(): Moment {
  return { mono: performance.now(), wall: Date.now() }
}

/** Milliseconds between two moments, by the clock that says more. */
export function passed(since: Moment, until: Moment): number {
  return Math.max(until.mono - since.mono, until.wall - since.wall)
}

/** Whether one clock has jumped against the other between two moments. */
export function hasJumped(since: Moment, until: Moment): boolean {
  return Math.abs(until.wall - since.wall - (until.mono - since.mono)) > JUMP_MS
}

/**
 * Calls once when so much has passed. Timers go by the monotonic clock, so that one alone would be late by all of a suspension.
 *
 * @returns what ends the wait without a call
 */
export function whenPassed(since: Moment, ms: number, call: () => void): () => void {
  let timer: NodeJS.Timeout | undefined
  const look = () => {
    const left = ms - passed(since, moment())
    if (left > 0) timer = setTimeout(look, Math.min(left, LATE_MS))
    else call()
  }
  timer = setTimeout(look, Math.max(0, Math.min(ms, LATE_MS)))
  return () => clearTimeout(timer)
}
