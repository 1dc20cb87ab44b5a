/**
 * Rows of keys, read behind a fence: what is decided by a row counts only if the row was not overtaken by a change
 * meanwhile. A read is announced before it is sent, and what the feed tells until its users are done with it
 * invalidates it. Whoever needs a row reads it here, and in no other way.
 */

import { Problem } from '../../errors.js'
import type { CachedKey } from './credential-cache.js'
import type { Clock } from '../../clock.js'
import type { CredentialReader } from './row-loader.js'
import type { Feed } from '../changes/feed.js'
import type { FoundCredential } from './store.js'

/** A read of the database that somebody works with. */
export interface Read {
  readonly id: string
  /** When it was asked for, on the clock. */
  readonly askedAt: number
  /** Whether what was read may be from before a change that has been told of. */
  readonly isOvertaken: boolean
  /** What was kept of it, for all who work with it. */
  key?: CachedKey
}

interface SharedRead extends Read {
  readonly found: Promise<FoundCredential | undefined>
  isOvertaken: boolean
  users: number
}

export interface RowsParts {
  readonly reader: Pick<CredentialReader, 'read'>
  readonly feed: Pick<Feed, 'isFresh'>
  readonly clock: Clock
}

/** How often a row that changes while it is worked with is read again: each time, something was really changed. */
const ATTEMPTS = 10

export class Rows {
  readonly #reads = new Set<SharedRead>()
  /** Those of them that are not overtaken, by id: another one who wants the same need not ask again. */
  readonly #joinable = new Map<string, SharedRead>()

  constructor(private readonly parts: RowsParts) {}

  /**
   * Reads the row of an id (UUID), and gives it to `use`. What that comes to counts if the row was not overtaken until then;
   * otherwise, and where `use` gives nothing, the row is read again.
   *
   * @throws Problem `database_unavailable` when the row changes faster than it can be worked with, and what reading throws
   */
  async withRow<T>(id: string, use: (found: FoundCredential | undefined, read: Read) => T | undefined | Promise<T | undefined>): Promise<T> {
    for (let attempt = 0; attempt < ATTEMPTS; attempt++) {
      const read = this.#begin(id)
      try {
        const found = await read.found
        const result = read.isOvertaken ? undefined : await use(found, read)
        if (result !== undefined && !read.isOvertaken) return result
        // Perhaps it is from before a change that nobody has told of yet: nobody joins it any more.
        this.#overtake(read)
      } finally {
        this.#end(read)
      }
    }
    throw new Problem('database_unavailable', 'The key is being changed. Try again in a moment.', { headers: { 'retry-after': '1' } })
  }

  /** These keys changed. */
  invalidate(ids: readonly string[]): void {
    if (this.#reads.size === 0) return
    const changed = new Set(ids)
    for (const read of this.#reads) if (changed.has(read.id)) this.#overtake(read)
  }

  /** Anything may have changed. */
  invalidateAll(): void {
    for (const read of this.#reads) this.#overtake(read)
  }

  /** Announces a read, or joins one under way; not where there is no feed that would tell of what overtakes it. */
  #begin(id: string): SharedRead {
    const { reader, feed, clock } = this.parts
    const askedAt = clock.now()
    const read: SharedRead = (feed.isFresh(askedAt) && this.#joinable.get(id)) || { id, askedAt, found: reader.read(id), isOvertaken: false, users: 0 }
    if (read.users++ === 0) {
      this.#reads.add(read)
      this.#joinable.set(id, read)
    }
    return read
  }

  #end(read: SharedRead): void {
    if (--read.users > 0) return
    this.#reads.delete(read)
    this.#endJoining(read)
  }

  #overtake(read: SharedRead): void {
    read.isOvertaken = true
    if (read.key) read.key.current = false
    this.#endJoining(read)
  }

  #endJoining(read: SharedRead): void {
    if (this.#joinable.get(read.id) === read) this.#joinable.delete(read.id)
  }
}
