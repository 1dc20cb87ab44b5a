/**
 * Work that several callers want at once: done once, and given up when the last of them has left. It is not `lru-cache`'s `fetch`, because that
 * listens to the signal of the first caller alone and ends the work of all when that one leaves.
 */

import { abandoned } from '../../errors.js'

interface Shared<T> {
  readonly result: Promise<T>
  readonly abandon: AbortController
  callers: number
}

export class SingleFlight<T> {
  /** By the name of what is wanted. */
  readonly #running = new Map<string, Shared<T>>()

  /** The result of `work`, of this call or of one under way. The signal that it is given aborts when all callers' have. */
  async join(name: string, signal: AbortSignal, work: (signal: AbortSignal) => Promise<T>): Promise<T> {
    if (signal.aborted) throw abandoned()
    const shared = this.#running.get(name) ?? this.#start(name, work)
    shared.callers++
    signal.addEventListener('abort', () => {
      if (--shared.callers > 0) return
      this.#end(name, shared)
      shared.abandon.abort()
    })
    return shared.result
  }

  #start(name: string, work: (signal: AbortSignal) => Promise<T>): Shared<T> {
    const abandon = new AbortController()
    const shared = { result: work(abandon.signal), abandon, callers: 0 }
    this.#running.set(name, shared)
    const end = () => this.#end(name, shared)
    shared.result.then(end, end)
    return shared
  }

  #end(name: string, shared: Shared<T>): void {
    if (this.#running.get(name) === shared) this.#running.delete(name)
  }
}
