/**
 * Time that has passed, for whatever is true only for a while. A monotonic clock stands still while the machine is
 * suspended, and a wall clock is set by others: neither alone says how old something is. So both are read, and where they
 * disagree about what has passed since they were last read, the clock has jumped: what was known before may be older than
 * it seems, and has to be confirmed anew.
 */

export interface ClockSources {
  /** Milliseconds that pass evenly, from any origin. */
  readonly monotonic: () => number
  /** Milliseconds since 1970. */
  readonly wall: () => number
}

/** What the two may differ by without a jump: the wall clock's resolution, and a process that was kept waiting between the two readings. */
const TOLERANCE_MS = 50
/** And per millisecond, while a wall clock is slewed (NTP slews by 500 parts in a million). */
const SLEW = 0.001

const SYSTEM: ClockSources = { monotonic: () => performance.now(), wall: () => Date.now() }

export class Clock {
  /** How often the clock has jumped. What was measured before the last jump is of no known age. */
  jumps = 0
  #readAt: number
  /** The wall clock less the monotonic one, as far as a slew explains it. */
  #offset: number
  readonly #listeners: (() => void)[] = []

  constructor(private readonly sources: ClockSources = SYSTEM) {
    this.#readAt = sources.monotonic()
    this.#offset = sources.wall() - this.#readAt
  }

  /** Milliseconds on the monotonic clock. Compare them with others only if {@link jumps} has stayed the same. */
  now(): number {
    const at = this.sources.monotonic()
    const drift = this.sources.wall() - at - this.#offset
    const slewed = (at - this.#readAt) * SLEW
    this.#readAt = at
    if (drift > TOLERANCE_MS + slewed || drift < -TOLERANCE_MS - slewed) this.#jump(drift)
    else this.#offset += Math.max(-slewed, Math.min(slewed, drift))
    return at
  }

  /** Calls when a reading finds that the clock has jumped. */
  onJump(listener: () => void): void {
    this.#listeners.push(listener)
  }

  #jump(drift: number): void {
    this.#offset += drift
    this.jumps++
    for (const listener of this.#listeners) listener()
  }
}
