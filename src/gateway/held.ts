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
import type { Valid } from './verdict.js'

export interface Held {
  /** 32 characters, a byte each. */
  readonly digest: string
  readonly verdict: Valid
  /** In milliseconds since 1970, or `Infinity`. */
  readonly expiresAt: number
  /** When the service was asked, on this process's monotonic clock. */
  readonly askedAt: number
  /** Whether it is not from before a change that has been told already. What is not is no answer to anybody else. */
  readonly isCurrent: boolean
}

/** What is remembered of changes, in keys. */
const MAX_CHANGES = 10_000
/** Where the id stands in a key: 26 characters before the `_` before the last 60. */
const ID_START = -87
const ID_END = -61

export class HeldKeys {
  /** 144 random bits. With a longer one, a key would take SHA-256 one block more, and a verify a fifth of its time. */
  readonly #secret = randomBytes(18).toString('base64url')
  /** By the id's 26 characters. */
  readonly #entries: LRUCache<string, Held>
  /** When changes were told, by the id's 26 characters, oldest first. */
  readonly #changedAt = new Map<string, number>()
  /** Any key may have changed up to this moment, which is all that is remembered of it. Nothing is known before the first word. */
  #floor = Infinity

  constructor(max: number) {
    this.#entries = new LRUCache({ max })
  }

  get size(): number {
    return this.#entries.size
  }

  /** SHA-256 with the secret in front; no digest is ever shown, which leaves nothing to extend. */
  digest(key: string): string {
    return hash('sha256', this.#secret + key, 'binary')
  }

  /** The entry of exactly this key, compared in constant time. */
  find(key: string): Held | undefined {
    const entry = this.#entries.get(idIn(key))
    return entry?.isCurrent && isSame(this.digest(key), entry.digest) ? entry : undefined
  }

  /** The entry of a key by its public id, current or not. */
  byId(keyId: string): Held | undefined {
    return this.#entries.peek(idOf(keyId))
  }

  /**
   * Keeps a verdict.
   *
   * @param askedAt when it was asked for, on the monotonic clock
   * @param ageMs how old what it rests on was when it was given
   */
  keep(key: string, verdict: Valid, askedAt: number, ageMs: number): Valid {
    const id = idOf(verdict.key_id)
    const kept = frozen(verdict)
    // It was given no sooner than it was asked for.
    const isCurrent = askedAt - ageMs >= this.#lastChange(id)
    const expiresAt = verdict.expires_at === null ? Infinity : Date.parse(verdict.expires_at)
    // Under the id of the verdict and not the one in the key, a part of whose text would keep all of it alive.
    this.#entries.set(id, { digest: this.digest(key), verdict: kept, expiresAt, askedAt, isCurrent })
    return kept
  }

  /** Whether it was told after this moment that the key has changed, or that any may have. */
  hasChangedSince(keyId: string, at: number): boolean {
    const changedAt = this.#lastChange(idOf(keyId))
    return changedAt > at && changedAt !== Infinity
  }

  /** Drops keys that changed. */
  drop(keyIds: readonly string[], at: number): void {
    for (const id of keyIds.map(idOf)) {
      this.#entries.delete(id)
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
    this.#changedAt.clear()
    this.#floor = at
  }

  #lastChange(id: string): number {
    return Math.max(this.#floor, this.#changedAt.get(id) ?? -Infinity)
  }
}

/** In a time that does not depend on what is in them. Not `timingSafeEqual`, which takes buffers: to make one takes as long as the digest. */
function isSame(one: string, other: string): boolean {
  let difference = one.length ^ other.length
  for (let i = 0; i < one.length; i++) difference |= one.charCodeAt(i) ^ other.charCodeAt(i)
  return difference === 0
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

/** The id's 26 characters in a presented key, or something that is no id. */
function idIn(key: string): string {
  return key.slice(ID_START, ID_END)
}

function idOf(keyId: string): string {
  return keyId.slice(keyId.indexOf('_') + 1)
}
