/** Rows for the cold path: asked for together, bounded in number, and refused at once while the database is silent. */

import DataLoader from 'dataloader'
import { overloaded, Problem } from '../../errors.js'
import type { FoundCredential } from './store.js'

/** Sends a statement, and knows that it is waited for until it is answered. */
type WhileSent = <T>(send: () => Promise<T>) => Promise<T>
/** The rows of those of some ids that there are. Each statement that this takes is sent by `whileSent`. */
type ReadRows = (ids: readonly string[], whileSent: WhileSent) => Promise<readonly FoundCredential[]>

export interface RowLoaderDeps {
  readonly read: ReadRows
  /** Most statements under way at once. What is asked for meanwhile goes together into the next one. */
  readonly statements: number
  /** Most rows that are waited for, and so most in one statement. */
  readonly limit: number
}

/** A statement that takes longer means a database in trouble: to wait for the next one would be in vain. */
const SILENCE_MS = 1000

export class RowLoader {
  readonly #loader: DataLoader<string, FoundCredential | undefined>
  /**
   * Reads under way, and when the statement of each was sent: `Infinity` while none is, because the feed is asked which history counts.
   * That is no silence of the database.
   */
  readonly #sent = new Set<{ at: number }>()
  /** Batches that wait for a statement to end. */
  readonly #waiting: (() => void)[] = []
  #pending = 0

  constructor(private readonly deps: RowLoaderDeps) {
    this.#loader = new DataLoader((ids) => this.#read(ids), {
      cache: false,
      batchScheduleFn: (dispatch) => (this.#sent.size < deps.statements ? setImmediate(dispatch) : this.#waiting.push(dispatch)),
    })
  }

  /** How many rows are waited for. */
  get pending(): number {
    return this.#pending
  }

  /**
   * Reads a row in a statement that has not been sent yet. What is refused is refused without a promise: that is cheaper.
   *
   * @throws Problem `overloaded` when too many wait, `database_unavailable` when the database is silent
   */
  read(id: string): Promise<FoundCredential | undefined> {
    if (this.#pending >= this.deps.limit) throw overloaded()
    const now = performance.now()
    for (const { at } of this.#sent)
      if (now - at > SILENCE_MS) throw new Problem('database_unavailable', 'Try again in a moment.', { headers: { 'retry-after': '1' } })
    return this.#load(id)
  }

  async #load(id: string): Promise<FoundCredential | undefined> {
    this.#pending++
    try {
      return await this.#loader.load(id)
    } finally {
      this.#pending--
    }
  }

  async #read(ids: readonly string[]): Promise<readonly (FoundCredential | undefined)[]> {
    const sent = { at: Infinity }
    this.#sent.add(sent)
    try {
      const rows = await this.deps.read([...new Set(ids)], async (send) => {
        sent.at = performance.now()
        try {
          return await send()
        } finally {
          sent.at = Infinity
        }
      })
      const byId = new Map(rows.map((found) => [found.row.id, found]))
      return ids.map((id) => byId.get(id))
    } finally {
      this.#sent.delete(sent)
      this.#waiting.shift()?.()
    }
  }
}
