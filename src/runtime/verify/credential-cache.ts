/**
 * Keys that have been verified, by id: a keyed digest of what was presented, and of the row what decides. No plaintext
 * and nothing that gives it away: the digest's key is this process's own and dies with it. One entry for each real key,
 * so guesses cannot fill it.
 *
 * A change does not throw an entry away but invalidates it: its row has to be read again, while the digest still
 * proves the secret for as long as the row's hash is the one that argon2 once proved it against. Which entry may be answered, and what may be
 * kept, is for the fence to say (`fence.ts`): nothing else asks the cache.
 */

import { LRUCache } from 'lru-cache'
import { encodeId, type CredentialKind } from '../../credentials/id.js'
import type { Token } from '../../credentials/token.js'
import { validAnswer } from './answer.js'
import { createDigest, isSameDigest } from '../../credentials/digest.js'
import type { Headers } from './send.js'
import type { CredentialRow, FoundCredential } from './store.js'
import type { Use } from '../usage/recorder.js'

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
  /** Which version of the row it is: another one after every change, whoever makes it. */
  readonly version: number
  /** What verify answers while a Mecha key is valid. */
  readonly answer: string
  /** What authz answers then, made when it is first needed. */
  identity: Headers | undefined
  /** Whether the first use has been recorded. */
  used: boolean
  /** Whether nothing has changed since the row was read, as far as the change feed has told. */
  current: boolean
  /** Whether nothing has changed altogether since then; shared by all entries that were made between two resets. */
  readonly era: Era
}

/** Where the id stands in a key: 26 characters before the `_` before the last 60. */
const ID_START = -87
const ID_END = -61

/** The time between two resets. Ending it invalidates every entry at once, however many there are. */
interface Era {
  isOver: boolean
}

/** Whether an entry may be answered from, as far as the change feed has told. */
export function isCurrent({ current, era }: CachedKey): boolean {
  return current && !era.isOver
}

export class CredentialCache {
  #era: Era = { isOver: false }
  readonly #digest = createDigest()
  /** By the id's 26 characters, as they stand in a key: nothing has to be decoded to look. */
  readonly #entries: LRUCache<string, CachedKey>
  /** Keys made here that are not good, by id: one digest each. A row can come back by hand, so they are forgotten soon. */
  readonly #refused = new LRUCache<string, string>({ max: 10_000, ttl: 10_000 })

  constructor(max: number) {
    this.#entries = new LRUCache({ max })
  }

  get size(): number {
    return this.#entries.size
  }

  /** The digest that {@link keep} takes. */
  digest({ text }: Token): string {
    return this.#digest(text)
  }

  /** The entry of exactly this key, current or not, compared in constant time. */
  find(text: string): CachedKey | undefined {
    const entry = this.#entries.get(idIn(text))
    return entry && this.#isDigestOf(text, entry.digest) ? entry : undefined
  }

  /** The entry of an id (UUID), current or not. */
  findById(id: string): CachedKey | undefined {
    return this.#entries.get(encodeId(id))
  }

  /** Keeps a key that was proved against its row. */
  keep({ row, used }: FoundCredential, digest: string): CachedKey {
    const entry = entryOf(row, used, digest, this.#era)
    this.#entries.set(encodeId(row.id), entry)
    return entry
  }

  /** Remembers for a while that this key, though made here, is not good: its row is gone, or its secret was replaced. */
  refuse(token: Token): void {
    // A slice of the token's text would keep all of it in memory.
    this.#refused.set(encodeId(token.id), this.digest(token))
  }

  isRefused(text: string): boolean {
    const digest = this.#refused.get(idIn(text))
    return digest !== undefined && this.#isDigestOf(text, digest)
  }

  /** Keys that are kept and current, for whoever compares them with the database. */
  *current(): Generator<CachedKey> {
    for (const entry of this.#entries.values()) if (isCurrent(entry)) yield entry
  }

  /** These keys (UUIDs) changed: their rows have to be read again. */
  invalidate(ids: readonly string[]): void {
    for (const id of ids.map(encodeId)) {
      const entry = this.#entries.peek(id)
      if (entry) entry.current = false
      this.#refused.delete(id)
    }
  }

  /** Anything may have changed. */
  invalidateAll(): void {
    this.#era.isOver = true
    this.#era = { isOver: false }
    this.#refused.clear()
  }

  #isDigestOf(text: string, digest: string): boolean {
    return isSameDigest(this.#digest(text), digest)
  }
}

function entryOf(row: CredentialRow, used: boolean, digest: string, era: Era): CachedKey {
  const { id, kind, org_id, mecha, scopes, hash, enabled, created_at, expires_at, revoked_at, version } = row
  return {
    digest, id, kind, org_id, mecha, scopes, hash, enabled, version,
    created_at: created_at.getTime(),
    expires_at: expires_at && expires_at.getTime(),
    revoked_at: revoked_at && revoked_at.getTime(),
    answer: kind === 'mecha' ? validAnswer(row) : '',
    identity: undefined, used, current: true, era, usedAt: 0, usedBy: null, isGathered: false,
  }
}

function idIn(text: string): string {
  return text.slice(ID_START, ID_END)
}
