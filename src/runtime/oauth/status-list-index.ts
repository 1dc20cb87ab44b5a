/** Where keys stand in the status list: asked once for each key that is exchanged, and again after it has changed. */

import { LRUCache } from 'lru-cache'
import { SingleFlight } from '../verify/single-flight.js'

/** By id (UUID). */
type FindPlace = (keyId: string) => Promise<number>

export class StatusPlaces {
  /** Made when the first key is exchanged: it takes its memory at once. */
  #known: LRUCache<string, number> | undefined
  readonly #asking = new SingleFlight<number>()
  /** How often something was told to have changed: what was asked before is not kept after. */
  #invalidations = 0

  constructor(
    private readonly find: FindPlace,
    private readonly max: number,
  ) {}

  /** However many ask for a key at once, the database is asked once. */
  placeOf(keyId: string, signal: () => AbortSignal): number | Promise<number> {
    return this.#known?.get(keyId) ?? this.#ask(keyId, signal())
  }

  /** Keys that changed: one that came back from the dead may have lost its place. */
  invalidate(keyIds: readonly string[]): void {
    this.#invalidations++
    for (const id of keyIds) this.#known?.delete(id)
  }

  invalidateAll(): void {
    this.#invalidations++
    this.#known?.clear()
  }

  async #ask(keyId: string, signal: AbortSignal): Promise<number> {
    const invalidations = this.#invalidations
    const place = await this.#asking.join(keyId, signal, () => this.find(keyId))
    if (invalidations === this.#invalidations) (this.#known ??= new LRUCache({ max: this.max })).set(keyId, place)
    return place
  }
}
