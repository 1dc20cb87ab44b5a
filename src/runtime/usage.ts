/** When keys were last used: gathered in memory, written together. */

/** A key's own note of when it was last used. */
export interface Use {
  readonly id: string
  /** In milliseconds. */
  usedAt: number
  /** Whether the recorder holds this note. */
  isGathered: boolean
}

/** Writes times by key id, or rejects and is asked again with them later. */
type Write = (uses: ReadonlyMap<string, number>) => Promise<void>

export class UsageRecorder {
  #gathered: Use[] = []
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

  /** Notes a use, at a time in milliseconds. The note stands with the key: most uses have nothing to look up. */
  seen(use: Use, at: number): void {
    use.usedAt = at
    if (use.isGathered) return
    use.isGathered = true
    this.#gathered.push(use)
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
    if (this.#gathered.length === 0) return
    const gathered = this.#gathered
    this.#gathered = []
    for (const use of gathered) use.isGathered = false
    // A key that was read anew has a second note.
    const uses = new Map<string, number>()
    for (const { id, usedAt } of gathered) uses.set(id, Math.max(usedAt, uses.get(id) ?? 0))
    try {
      await this.write(uses)
    } catch (error) {
      for (const use of gathered) this.seen(use, use.usedAt)
      this.onError(error)
    }
  }
}
