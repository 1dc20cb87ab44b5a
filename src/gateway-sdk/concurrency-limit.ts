/** Turns: so many at once and no more, the others one after another as they came. */

export class Turns {
  #running = 0
  readonly #waiting = new Set<() => void>()

  /** @param max how many may have a turn at once */
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

  /** Resolves when it is its turn. Rejects with the signal's reason when that is aborted before. */
  async take(signal?: AbortSignal): Promise<void> {
    signal?.throwIfAborted()
    if (!this.isFull) return void this.#running++
    return new Promise<void>((resolve, reject) => {
      const leave = () => {
        this.#waiting.delete(go)
        reject(signal?.reason as Error)
      }
      const go = () => {
        this.#waiting.delete(go)
        signal?.removeEventListener('abort', leave)
        // Taken here and not when the promise is looked at: nobody may come in between.
        this.#running++
        resolve()
      }
      this.#waiting.add(go)
      signal?.addEventListener('abort', leave)
    })
  }

  /** Gives a turn back. */
  leave(): void {
    this.#running--
    const [next] = this.#waiting
    next?.()
  }
}
