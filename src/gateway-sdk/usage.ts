/**
 * When keys were last used that were answered from memory: gathered, and reported to the service together. A crash loses what
 * was gathered since the last report, and no more is gathered than fits a bound.
 */

import { moment, passed } from './clock.js'
import { VerifierUnavailable } from './errors.js'
import type { Valid } from './verdict.js'

/** A key's own note of when it was last used. */
export interface Use {
  readonly verdict: Valid
  /** In milliseconds, by the database's clock. */
  usedAt: number
  /** Whether the reporter holds this note. */
  isGathered: boolean
}

export interface UsageDeps {
  /** Reports some uses. Resolves to `false` when they will never be taken; rejects when they may be taken later. */
  readonly report: (uses: readonly { readonly key_id: string; readonly used_at: string }[]) => Promise<boolean>
  readonly intervalMs: number
  /** Most notes that are kept. */
  readonly max: number
  readonly onError: (error: unknown) => void
}

/** Uses in one report, at most. */
const MAX_REPORT = 1000

export class UsageReporter {
  #gathered: Use[] = []
  #reporting: Promise<void> | undefined
  readonly #timer: NodeJS.Timeout
  #isLate = () => false
  reported = 0
  /** Uses that there was no room for, or that the service did not take. */
  lost = 0

  constructor(private readonly deps: UsageDeps) {
    this.#timer = setInterval(() => void this.flush(), deps.intervalMs).unref()
  }

  /** Notes a use. The note stands with the key: most uses have nothing to look up and nothing to make. */
  seen(use: Use, at: number): void {
    use.usedAt = at
    if (!use.isGathered) this.#gather(use)
  }

  /** Reports what has been gathered. One report runs at a time; what could not be reported is kept for the next. */
  flush(): Promise<void> {
    return (this.#reporting ??= this.#report().finally(() => (this.#reporting = undefined)))
  }

  /** Reports the rest, as far as that can be begun within so much time, and ends. */
  async stop(withinMs: number): Promise<void> {
    clearInterval(this.#timer)
    const since = moment()
    this.#isLate = () => passed(since, moment()) > withinMs
    await this.#reporting
    await this.flush()
    this.lost += this.#gathered.length
    this.#gathered = []
  }

  #gather(use: Use): void {
    if (this.#gathered.length >= this.deps.max) {
      this.lost++
      return
    }
    use.isGathered = true
    this.#gathered.push(use)
  }

  async #report(): Promise<void> {
    const gathered = this.#gathered
    this.#gathered = []
    for (const use of gathered) use.isGathered = false
    for (let start = 0; start < gathered.length; start += MAX_REPORT) {
      if (this.#isLate()) return this.#keep(gathered.slice(start))
      const part = gathered.slice(start, start + MAX_REPORT)
      try {
        const uses = part.map(({ verdict, usedAt }) => ({ key_id: verdict.key_id, used_at: new Date(usedAt).toISOString() }))
        if (await this.deps.report(uses)) this.reported += part.length
        else this.lost += part.length
      } catch (error) {
        if (!(error instanceof VerifierUnavailable)) this.deps.onError(error)
        return this.#keep(gathered.slice(start))
      }
    }
  }

  #keep(uses: readonly Use[]): void {
    for (const use of uses) if (!use.isGathered) this.#gather(use)
  }
}
