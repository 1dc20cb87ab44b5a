/**
 * Keys that have been verified, by id: a keyed digest of what was presented, and of the row what decides. No plaintext
 * and nothing that gives it away: the digest's key is this process's own and dies with it. One entry for each real key,
 * so guesses cannot fill it.
 *
 * A change does not throw an entry away but makes it outdated: its row has to be read again, while the digest still
 * proves the secret for as long as the row's hash is the one that argon2 once proved it against.
 */

import { LRUCache } from 'lru-cache'
import { encodeId, type CredentialKind } from '../key/id.js'
import type { Token } from '../key/token.js'
import { validAnswer } from './answer.js'
import { createDigest, isSameDigest } from '../key/digest.js'
import type { Headers } from './send.js'
import type { CredentialRow, FoundCredential } from './store.js'
import type { Use } from './usage.js'

/** Flat and with numbers for times: 100,000 of them are to fit into 100 MiB (`docs/performance.md`). */
export interface CachedKey extends Use {
  readonly digest: string
  readonly kind: CredentialKind
  readonly org_id: string | null
  readonly mecha: string | null
  readonly scopes: readonly string[]
  /** What argon2 proved the digest's text against. */
  readonly hash: string
  readonly enabled: boolean
  /** In milliseconds, as the next two. */
  readonly created_at: number
  readonly expires_at: number | null
  readonly revoked_at: number | null
  /** What verify answers while a Mecha key is valid. */
  readonly answer: string
  /** What authz answers then: made when it is first asked for. */
  identity: Headers | undefined
  /** Whether the first use has been recorded. */
  used: boolean
  /** Whether nothing has changed since the row was read, as far as the change feed has told. */
  current: boolean
}

/** A read of the database that somebody works with. What changes meanwhile spoils it. */
export interface Read {
  readonly id: string
  readonly found: Promise<FoundCredential | undefined>
  spoiled: boolean
  users: number
  /** What came of it. */
  key?: CachedKey
}

/** Where the id stands in a key: 26 characters before the `_` before the last 60. */
const ID_START = -87
const ID_END = -61

export class KeyCache {
  readonly #digest = createDigest()
  /** By the id's 26 characters, as they stand in a key: nothing has to be decoded to look. */
  readonly #entries: LRUCache<string, CachedKey>
  /** Keys made here that are not good, by id: one digest each. A row can come back by hand, so they are forgotten soon. */
  readonly #refused = new LRUCache<string, string>({ max: 10_000, ttl: 10_000 })
  readonly #reads = new Set<Read>()
  /** Those of them that are not spoiled, by id: another one who wants the same need not ask again. */
  readonly #joinable = new Map<string, Read>()

  constructor(max: number) {
    this.#entries = new LRUCache({ max })
  }

  get size(): number {
    return this.#entries.size
  }

  /** The digest of a key, to keep. */
  digest({ text }: Token): string {
    return this.#digest(text)
  }

  /** The entry of exactly this key, current or not, compared in constant time. */
  find(text: string): CachedKey | undefined {
    const entry = this.#entries.get(idIn(text))
    return entry && this.#isDigestOf(text, entry.digest) ? entry : undefined
  }

  /** The entry of an id (UUID), current or not, for whoever has proved otherwise that they were given it. */
  findById(id: string): CachedKey | undefined {
    return this.#entries.get(encodeId(id))
  }

  /**
   * Announces a read before it is sent, or joins one that somebody works with and that is not spoiled.
   *
   * @param mayJoin whether there is a feed to spoil what is overtaken
   */
  beginRead(id: string, mayJoin: boolean, send: () => Promise<FoundCredential | undefined>): Read {
    const read = (mayJoin && this.#joinable.get(id)) || { id, found: send(), spoiled: false, users: 0 } satisfies Read
    if (read.users++ === 0) {
      this.#reads.add(read)
      this.#joinable.set(id, read)
    }
    return read
  }

  /** This user has done with the read what it wanted. */
  endRead(read: Read): void {
    if (--read.users > 0) return
    this.#reads.delete(read)
    this.#endJoining(read)
  }

  /** Keeps a key whose read was not spoiled: once, however many work with it. */
  keep(read: Read, { row, used }: FoundCredential, digest: string): CachedKey {
    if (!read.key) this.#entries.set(encodeId(row.id), (read.key = entryOf(row, used, digest)))
    return read.key
  }

  /** Remembers for a while that this key, though made here, is not good: its row is gone, or its secret was replaced. */
  refuse(token: Token): void {
    // Not a part of the token's text: that would keep all of it alive.
    this.#refused.set(encodeId(token.id), this.digest(token))
  }

  isRefused(text: string): boolean {
    const digest = this.#refused.get(idIn(text))
    return digest !== undefined && this.#isDigestOf(text, digest)
  }

  /** A read that turned out to be from before a change that nobody has told of yet: nobody joins it any more. */
  spoil(read: Read): void {
    if (read.key) read.key.current = false
    read.spoiled = true
    this.#endJoining(read)
  }

  /** Outdates keys that changed, and spoils reads of them. */
  outdate(ids: readonly string[]): void {
    const changed = new Set(ids)
    for (const read of this.#reads) if (changed.has(read.id)) this.spoil(read)
    for (const id of ids.map(encodeId)) {
      const entry = this.#entries.peek(id)
      if (entry) entry.current = false
      this.#refused.delete(id)
    }
  }

  /** Anything may have changed. */
  outdateAll(): void {
    for (const read of this.#reads) this.spoil(read)
    for (const entry of this.#entries.values()) entry.current = false
    this.#refused.clear()
  }

  #endJoining(read: Read): void {
    if (this.#joinable.get(read.id) === read) this.#joinable.delete(read.id)
  }

  #isDigestOf(text: string, digest: string): boolean {
    return isSameDigest(this.#digest(text), digest)
  }
}

function entryOf(row: CredentialRow, used: boolean, digest: string): CachedKey {
  const { id, kind, org_id, mecha, scopes, hash, enabled, created_at, expires_at, revoked_at } = row
  return {
    digest, id, kind, org_id, mecha, scopes, hash, enabled,
    created_at: created_at.getTime(),
    expires_at: expires_at && expires_at.getTime(),
    revoked_at: revoked_at && revoked_at.getTime(),
    answer: kind === 'mecha' ? validAnswer(row) : '',
    identity: undefined, used, current: true, usedAt: 0, usedBy: null, isGathered: false,
  }
}

function idIn(text: string): string {
  return text.slice(ID_START, ID_END)
}
