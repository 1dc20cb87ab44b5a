/** Who wants to know when a key is no longer vouched for: open sockets, above all. */

/** Why a key is no longer vouched for. */
export type EndReason =
  /** It was revoked, disabled, replaced or otherwise changed, or may have been. */
  | 'changed'
  /** It has come to its end. */
  | 'expired'
  /** Nothing has vouched for it for as long as the bound. */
  | 'stale'
  /** The verifier was closed. */
  | 'closed'

export interface End {
  readonly reason: EndReason
  /** How long the bound still lets the key be taken for what it was, in milliseconds: time to ask about it again. */
  readonly leftMs: number
}

export type WatchListener = (end: End) => void

interface Watch {
  readonly keyId: string
  readonly expiresAt: number
  readonly listener: WatchListener
}

/** What the watches look at, besides what they are told. */
export interface Vouching {
  /** How long the stream's last confirmation still holds, at a moment of the monotonic clock. */
  leftMs(at: number): number
  /** The service's clock then. */
  now(at: number): number
}

/** How often all are looked at. */
const TICK_MS = 100

export class Watches {
  readonly #byKey = new Map<string, Set<Watch>>()
  #timer: NodeJS.Timeout | undefined

  constructor(private readonly vouching: Vouching) {}

  /** @returns what ends the watch without a call */
  add(keyId: string, expiresAt: number, listener: WatchListener): () => void {
    const watch = { keyId, expiresAt, listener }
    const watches = this.#byKey.get(keyId) ?? new Set()
    this.#byKey.set(keyId, watches.add(watch))
    this.#timer ??= setInterval(() => this.#look(), TICK_MS).unref()
    return () => this.#remove(watch)
  }

  changed(keyIds: readonly string[], leftMs: number): void {
    for (const id of keyIds) for (const watch of this.#byKey.get(id) ?? []) this.#end(watch, { reason: 'changed', leftMs })
  }

  /** All of them. */
  end(end: End): void {
    for (const watch of this.#all()) this.#end(watch, end)
  }

  /** The clock, and not a timer for each: a process that was stopped finds out when it goes on. */
  #look(): void {
    const at = performance.now()
    // What would be late at the next look ends with this one.
    if (this.vouching.leftMs(at) < TICK_MS) return this.end({ reason: 'stale', leftMs: 0 })
    const now = this.vouching.now(at)
    for (const watch of this.#all()) if (watch.expiresAt <= now) this.#end(watch, { reason: 'expired', leftMs: 0 })
  }

  #end(watch: Watch, end: End): void {
    if (this.#remove(watch)) watch.listener(end)
  }

  #remove(watch: Watch): boolean {
    const watches = this.#byKey.get(watch.keyId)
    if (!watches?.delete(watch)) return false
    if (watches.size === 0) this.#byKey.delete(watch.keyId)
    if (this.#byKey.size === 0) {
      clearInterval(this.#timer)
      this.#timer = undefined
    }
    return true
  }

  #all(): Watch[] {
    return [...this.#byKey.values()].flatMap((watches) => [...watches])
  }
}
