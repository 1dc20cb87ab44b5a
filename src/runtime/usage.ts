/** When keys were last used: gathered in memory, written together. */

/** Writes the gathered times, or rejects and is asked again with them later. */
type Write = (uses: ReadonlyMap<string, number>) => Promise<void>

export class UsageRecorder {
  #gathered = new Map<string, number>()
  #writing: Promise<void> = Promise.resolve()
  readonly #timer: NodeJS.Timeout

  /** @param intervalMs what a crash can lose at most */
  constructor(
    private readonly write: Write,
    intervalMs: number,
    private readonly onError: (error: unknown) => void,
  ) {
    this.#timer = setInterval(() => void this.flush(), intervalMs).unref()
  }

  /** Notes a use, at a time in milliseconds. Holds one entry for each key used since the last flush. */
  seen(id: string, at: number): void {
    this.#gathered.set(id, at)
  }

  /** Writes what has been gathered. One flush runs at a time; what could not be written is kept for the next. */
  flush(): Promise<void> {
    this.#writing = this.#writing.then(() => this.#writeGathered())
    return this.#writing
  }

  /** Writes the rest and ends. */
  async stop(): Promise<void> {
    clearInterval(this.#timer)
    await this.flush()
  }

  async #writeGathered(): Promise<void> {
    if (this.#gathered.size === 0) return
    const uses = this.#gathered
    this.#gathered = new Map()
    try {
      await this.write(uses)
    } catch (error) {
      for (const [id, at] of this.#gathered) uses.set(id, at)
      this.#gathered = uses
      this.onError(error)
    }
  }
}
