/** Work that several callers want at once: done once, and given up when the last of them has left. */

import { abandoned } from '../../errors.js'

interface Shared<T> {
  readonly result: Promise<T>
  readonly abandon: AbortController
  callers: number
}

/** Joins callers by the name of what they want. */
export function createChecks<T>() {
  const running = new Map<string, Shared<T>>()

  function end(name: string, shared: Shared<T>): void {
    if (running.get(name) === shared) running.delete(name)
  }

  function start(name: string, work: (signal: AbortSignal) => Promise<T>): Shared<T> {
    const abandon = new AbortController()
    const shared = { result: work(abandon.signal), abandon, callers: 0 }
    running.set(name, shared)
    const over = () => end(name, shared)
    shared.result.then(over, over)
    return shared
  }

  return {
    /** The result of `work`, of this call or of one under way. The signal that it is given aborts when all callers' have. */
    async join(name: string, signal: AbortSignal, work: (signal: AbortSignal) => Promise<T>): Promise<T> {
      if (signal.aborted) throw abandoned()
      const shared = running.get(name) ?? start(name, work)
      shared.callers++
      signal.addEventListener('abort', () => {
        if (--shared.callers > 0) return
        end(name, shared)
        shared.abandon.abort()
      })
      return shared.result
    },
  }
}
