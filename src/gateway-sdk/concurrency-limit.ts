/** Limits how many things run at once. The others wait, and are admitted in the order in which they came. */

export class ConcurrencyLimit {
  #running = 0
  readonly #waiting = new Set<() => void>()

  /** @param max how many may run at once */
  constructor(private readonly max: number) {}

  get running(): number {
    return this.#running
  }

  get waiting(): number {
    return this.#waiting.size
  }

  get isFull(): boolean {
    return this.#running >= this.max
  }

  /** Resolves when the caller may run. Rejects with the signal's reason when that is aborted before. */
  async acquire(signal?: AbortSignal): Promise<void> {
    signal?.throwIfAborted()
    if (!this.isFull) return void this.#running++
    return new Promise<void>((resolve, reject) => {
      const giveUp = () => {
        this.#waiting.delete(admit)
        reject(signal?.reason as Error)
      }
      const admit = () => {
        this.#waiting.delete(admit)
        signal?.removeEventListener('abort', giveUp)
        // Counted here and not when the promise is looked at, or another caller could come in between.
        this.#running++
        resolve()
      }
      this.#waiting.add(admit)
      signal?.addEventListener('abort', giveUp)
    })
  }

  /** Ends a run and admits the next. */
  release(): void {
    this.#running--
    const [next] = this.#waiting
    next?.()
  }
}
