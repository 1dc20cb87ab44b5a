/**
 * Keys that the service has called good, by id: a keyed digest of what was presented, and the verdict. No plaintext and
 * nothing that gives it away: the digest's key is this process's own and dies with it. One entry for each real key, so
 * guesses cannot fill it.
 *
 * What decides whether an answer may be kept is how old its knowledge is. Answers come from any replica of the service,
 * the stream of changes from one; an answer that rests on older knowledge than the last change that was told of its key
 * may be from before that change, and nothing would ever be told of it again.
 */

import { hash, randomBytes } from 'node:crypto'
import { LRUCache } from 'lru-cache'
import type { Moment } from './clock.js'
import type { Use } from './usage.js'
import type { Valid } from './verdict.js'

export interface CachedKey extends Use {
  /** 32 characters, a byte each. */
  readonly digest: string
  readonly verdict: Valid
  /** In milliseconds since 1970, or `Infinity`. */
  readonly expiresAt: number
  /** Whether it is not from before a change that has been told already. What is not is no answer to anybody else. */
  readonly isCurrent: boolean
  /** What the service calls the row that the verdict was read from; `undefined` where it does not say. */
  readonly version: string | undefined
  /** When it was last known to be as the database has it. */
  comparedAt: Moment
}

/** What a verdict that is to be kept rests on. */
export interface Basis {
  /** When the service was asked. */
  readonly askedAt: Moment
  /** How old it was when it was given, in milliseconds; `Infinity` where nobody can say, or it must not be cached. */
  readonly ageMs: number
  readonly version: string | undefined
}

/** What is remembered of changes, in keys. */
const MAX_CHANGES = 10_000

export class KeyCache {
  /** 144 random bits. With a longer one, a key would take SHA-256 one block more, and a verify a fifth of its time. */
  readonly #secret = randomBytes(18).toString('base64url')
  /** By their digests. Nobody who does not know the secret can make use of how long a look for one of them takes. */
  readonly #entries: LRUCache<string, CachedKey>
  /** The same entries by the id's 26 characters, the one that was compared longest ago first. */
  readonly #byId = new Map<string, CachedKey>()
  /** When changes were told on the monotonic clock, by the id's 26 characters, oldest first. */
  readonly #changedAt = new Map<string, number>()
  /** Any key may have changed up to this moment, which is all that is remembered of it. Nothing is known before the first word. */
  #floor = Infinity

  constructor(max: number) {
    this.#entries = new LRUCache({ max, dispose: ({ verdict }) => this.#byId.delete(idOf(verdict.key_id)) })
  }

  get size(): number {
    return this.#entries.size
  }

  /** SHA-256 with the secret in front; no digest is ever shown, which leaves nothing to extend. */
  digest(key: string): string {
    return hash('sha256', this.#secret + key, 'binary')
  }

  /** The entry of exactly this key, if it may be an answer. */
  find(key: string): CachedKey | undefined {
    const entry = this.#entries.get(this.digest(key))
    return entry?.isCurrent ? entry : undefined
  }

  /** The entry of a key by its public id, current or not. */
  byId(keyId: string): CachedKey | undefined {
    return this.#byId.get(idOf(keyId))
  }

  /** Keeps a verdict. */
  keep(key: string, verdict: Valid, { askedAt, ageMs, version }: Basis): CachedKey {
    const id = idOf(verdict.key_id)
    // It was given no sooner than it was asked for.
    const isCurrent = askedAt.mono - ageMs >= this.#lastChange(id)
    const expiresAt = verdict.expires_at === null ? Infinity : Date.parse(verdict.expires_at)
    const entry = { digest: this.digest(key), verdict: frozen(verdict), expiresAt, isCurrent, version, comparedAt: askedAt, usedAt: NaN, isGathered: false }
    this.#delete(id)
    this.#entries.set(entry.digest, entry)
    this.#byId.set(id, entry)
    return entry
  }

  /** Entries in the order in which they were compared: so many, and all others that are overdue. */
  toCompare(count: number, isOverdue: (cached: CachedKey) => boolean): CachedKey[] {
    const due: CachedKey[] = []
    for (const cached of this.#byId.values()) {
      if (due.length >= count && !isOverdue(cached)) break
      due.push(cached)
    }
    return due
  }

  /** Notes that an entry was as the database had it at this moment, unless it has been dropped or replaced meanwhile. */
  compared(cached: CachedKey, at: Moment): void {
    const id = idOf(cached.verdict.key_id)
    if (this.#byId.get(id) !== cached) return
    cached.comparedAt = at
    this.#byId.delete(id)
    this.#byId.set(id, cached)
  }

  /** Whether it was told after this moment that the key has changed, or that any may have. */
  hasChangedSince(keyId: string, at: Moment): boolean {
    const changedAt = this.#lastChange(idOf(keyId))
    return changedAt > at.mono && changedAt !== Infinity
  }

  /** Drops keys that changed, and remembers when they did on the monotonic clock. */
  drop(keyIds: readonly string[], at: number): void {
    for (const id of keyIds.map(idOf)) {
      this.#delete(id)
      this.#changedAt.delete(id)
      this.#changedAt.set(id, at)
    }
    for (const [id, changedAt] of this.#changedAt) {
      if (this.#changedAt.size <= MAX_CHANGES) break
      this.#changedAt.delete(id)
      this.#floor = Math.max(this.#floor, changedAt)
    }
  }

  /** Anything may have changed up to now. */
  dropAll(at: number): void {
    this.#entries.clear()
    this.#byId.clear()
    this.#changedAt.clear()
    this.#floor = at
  }

  #delete(id: string): void {
    const entry = this.#byId.get(id)
    if (entry) this.#entries.delete(entry.digest)
  }

  #lastChange(id: string): number {
    return Math.max(this.#floor, this.#changedAt.get(id) ?? -Infinity)
  }
}

/** A copy that nobody can change: it is handed to everybody who asks. */
function frozen({ valid, key_id, mecha, org_id, scopes, metadata, expires_at }: Valid): Valid {
  return freeze({ valid, key_id, mecha, org_id, scopes, metadata, expires_at })
}

function freeze<T>(value: T): T {
  if (typeof value !== 'object' || value === null) return value
  for (const part of Object.values(value)) freeze(part)
  return Object.freeze(value)
}

function idOf(keyId: string): string {
  return keyId.slice(keyId.indexOf('_') + 1)
}
