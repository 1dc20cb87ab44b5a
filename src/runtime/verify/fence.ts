/**
 * The fence: the one way in which credentials are read, proved, kept, answered from memory and invalidated. Its promise is that nothing which was
 * read before a change is answered after that change has been told.
 *
 * 1. Answer from memory only while the feed vouches for it, and only from an entry of which no change has been told.
 * 2. Announce a read before its statement is sent: a change that is told from then on overtakes it. Callers share a read that is not overtaken.
 * 3. Prove the secret against the row's hash: by argon2, or by its digest where argon2 has proved that against the very same hash.
 * 4. Keep what was proved, and remember what was refused, only if the read has not been overtaken. One read makes one entry.
 * 5. Let a caller's decision count only if the read has not been overtaken when it is made. Otherwise read anew, a bounded number of times.
 * 6. Invalidate entries and reads together. What was kept of a read is invalidated with it.
 */

import type { Clock } from '../../clock.js'
import type { Token } from '../../credentials/token.js'
import { Problem } from '../../errors.js'
import type { Feed } from '../changes/feed.js'
import type { Caller } from '../gateway-auth/callers.js'
import { isCurrent, type CachedKey, type CredentialCache } from './credential-cache.js'
import type { RowLoader } from './row-loader.js'
import { subjectOf, type SecretProver } from './secret-prover.js'
import type { CredentialRow, FoundCredential } from './store.js'

/** A read of the database that somebody works with. */
export interface Read {
  readonly id: string
  /** When it was asked for, on the clock. */
  readonly askedAt: number
  /** Whether what was read may be from before a change that has been told of. */
  readonly isOvertaken: boolean
}

interface SharedRead extends Read {
  readonly found: Promise<FoundCredential | undefined>
  isOvertaken: boolean
  users: number
  /** What was kept of it, for all who work with it. */
  key?: CachedKey
}

/** A key, and the row that it was proved against. */
export interface Proven {
  readonly key: CachedKey
  readonly found: FoundCredential
}

export interface FenceDeps {
  readonly cache: CredentialCache
  readonly loader: Pick<RowLoader, 'read'>
  readonly prover: Pick<SecretProver, 'prove'>
  readonly feed: Pick<Feed, 'isFresh'>
  readonly clock: Clock
}

/** How often a row that changes while it is worked with is read again: each time, something was really changed. */
const ATTEMPTS = 10

export class Fence {
  readonly #reads = new Set<SharedRead>()
  /** Those of them that are not overtaken, by id: another caller who wants the same need not ask again. */
  readonly #joinable = new Map<string, SharedRead>()

  constructor(private readonly deps: FenceDeps) {}

  // ── Answering from memory. `at` is the time on the clock. ──

  /** The key with exactly this text, if it may be answered from memory. */
  find(text: string, at: number): CachedKey | undefined {
    const { feed, cache } = this.deps
    if (!feed.isFresh(at)) return undefined
    const key = cache.find(text)
    return key && isCurrent(key) ? key : undefined
  }

  /** The same by the id (UUID), for whoever has proved otherwise that they were given the key. */
  findById(id: string, at: number): CachedKey | undefined {
    const { feed, cache } = this.deps
    const key = feed.isFresh(at) ? cache.findById(id) : undefined
    return key && isCurrent(key) ? key : undefined
  }

  /** Whether this text was proved lately to be no key. */
  isRefused(text: string, at: number): boolean {
    const { feed, cache } = this.deps
    return feed.isFresh(at) && cache.isRefused(text)
  }

  /** Whether a key is cached which must not be answered, because the feed does not vouch for it. */
  isUnvouched(key: { readonly text: string } | { readonly id: string }, at: number): boolean {
    const { feed, cache } = this.deps
    return !feed.isFresh(at) && ('text' in key ? cache.find(key.text) : cache.findById(key.id)) !== undefined
  }

  // ── Reading, proving and keeping ──

  /**
   * Reads the row of an id (UUID), and gives it to `use`. What that comes to counts if the row was not overtaken until then;
   * otherwise, and where `use` gives nothing, the row is read again.
   *
   * @throws Problem `database_unavailable` when the row changes faster than it can be worked with, and what reading throws
   */
  withRow<T>(id: string, use: (found: FoundCredential | undefined, read: Read) => T | undefined | Promise<T | undefined>): Promise<T> {
    return this.#withRead(id, use)
  }

  /** Gives `use` the key that was proved against its row, or nothing where there is no such key. Otherwise as {@link withRow}. */
  withProven<T>(token: Token, caller: Caller, use: (proven: Proven | undefined, read: Read) => T | undefined | Promise<T | undefined>): Promise<T> {
    const { cache } = this.deps
    return this.#withRead(token.id, async (found, read) => {
      const digest = found && (await this.#prove(token, found.row, caller))
      if (read.isOvertaken) return undefined
      if (digest === undefined) {
        cache.refuse(token)
        return use(undefined, read)
      }
      read.key ??= cache.keep(found!, digest)
      return use({ key: read.key, found: found! }, read)
    })
  }

  /** The database's time in milliseconds: when the row was read, and what has passed since the read was asked for. It is never slow. */
  timeOf({ now }: FoundCredential, { askedAt }: Read): number {
    return now.getTime() + (this.deps.clock.now() - askedAt)
  }

  // ── Invalidating ──

  /** Keys that may be answered as far as the feed has told, for whoever compares them with the database. */
  current(): Iterable<CachedKey> {
    return this.deps.cache.current()
  }

  /** These keys (UUIDs) changed. */
  invalidate(ids: readonly string[]): void {
    this.deps.cache.invalidate(ids)
    if (this.#reads.size === 0) return
    const changed = new Set(ids)
    for (const read of this.#reads) if (changed.has(read.id)) this.#overtake(read)
  }

  /** Any key may have changed. */
  invalidateAll(): void {
    this.deps.cache.invalidateAll()
    for (const read of this.#reads) this.#overtake(read)
  }

  // ── Steps ──

  async #withRead<T>(id: string, use: (found: FoundCredential | undefined, read: SharedRead) => T | undefined | Promise<T | undefined>): Promise<T> {
    for (let attempt = 0; attempt < ATTEMPTS; attempt++) {
      const read = this.#begin(id)
      try {
        const found = await read.found
        const result = read.isOvertaken ? undefined : await use(found, read)
        if (result !== undefined && !read.isOvertaken) return result
        // It may be from before a change that nobody has told of yet, so nobody joins it any more.
        this.#overtake(read)
      } finally {
        this.#end(read)
      }
    }
    throw new Problem('database_unavailable', 'The key is being changed. Try again in a moment.', { headers: { 'retry-after': '1' } })
  }

  /** Announces a read, or joins one under way. Without a fresh feed nothing would tell what overtakes a shared read, so none is joined. */
  #begin(id: string): SharedRead {
    const { loader, feed, clock } = this.deps
    const askedAt = clock.now()
    const read: SharedRead = (feed.isFresh(askedAt) && this.#joinable.get(id)) || { id, askedAt, found: loader.read(id), isOvertaken: false, users: 0 }
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

  /** The digest of a token that belongs to the row, or `undefined` where it does not. */
  async #prove(token: Token, row: CredentialRow, caller: Caller): Promise<string | undefined> {
    const { cache, prover } = this.deps
    const before = cache.find(token.text)
    if (before && before.hash === row.hash && subjectOf(before) === subjectOf(row)) return before.digest
    const digest = cache.digest(token)
    return (await prover.prove(token, row, digest, caller)) ? digest : undefined
  }
}
