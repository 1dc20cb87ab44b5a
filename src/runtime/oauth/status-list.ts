/**
 * The status list (draft-ietf-oauth-status-list): two bits for each key that was ever exchanged, so that a gateway that
 * verifies offline learns that a key has ended before what it was exchanged for does.
 */

import { createHash } from 'node:crypto'
import { promisify } from 'node:util'
import { deflate, constants } from 'node:zlib'
import type { Clock } from '../clock.js'
import { signJwt, type Keyring } from './keyring.js'
import type { Statuses } from './store.js'

export interface StatusListParts {
  readonly read: () => Promise<Statuses>
  readonly keyring: Keyring
  /** `iss` of the list. */
  readonly issuer: () => string
  /** Longest time after which a change has to be in the list: `REVOCATION_MAX_STALENESS`. */
  readonly maxStalenessMs: number
  readonly clock: Clock
}

/** The list, signed, and how it may be kept. */
export interface StatusListToken {
  readonly jwt: string
  readonly etag: string
  /** Seconds. */
  readonly maxAge: number
}

/** Bits of a status, and what they say (section 7.1 of the draft). 0 is VALID. */
const BITS = 2
const PER_BYTE = 8 / BITS
const INVALID = 0b01
const SUSPENDED = 0b10
/** A list of fewer tells how many there are. */
const LEAST_PLACES = 1024
/** Shortest time between two readings, however much changes. */
const REBUILD_MS = 250

const compress = promisify(deflate)

export const STATUS_LIST_PATH = '/.well-known/token-status'

export class StatusList {
  #held: { readonly token: StatusListToken; readonly readAt: number; readonly jumps: number; readonly changes: number } | undefined
  #building: Promise<StatusListToken> | undefined
  /** How many changes of keys the feed has told of. */
  #changes = 0

  constructor(private readonly parts: StatusListParts) {}

  /** Something has changed: what is held may not be true any more. */
  invalidate(): void {
    this.#changes++
  }

  invalidateAll(): void {
    this.#changes++
  }

  /**
   * The list as of now: no change is missing that was committed half of `maxStalenessMs` ago or earlier, and none at all
   * that the feed has told of, but for the shortest time between two readings.
   *
   * @throws what the database throws when the list has to be read and cannot be
   */
  current(): Promise<StatusListToken> {
    const held = this.#held
    const { maxStalenessMs, clock } = this.parts
    const at = clock.now()
    const age = held && held.jumps === clock.jumps ? at - held.readAt : Infinity
    const holds = held?.changes === this.#changes ? maxStalenessMs / 2 : Math.min(REBUILD_MS, maxStalenessMs / 4)
    if (held && age < holds) return Promise.resolve(held.token)
    this.#building ??= this.#build().finally(() => (this.#building = undefined))
    return this.#building
  }

  async #build(): Promise<StatusListToken> {
    const { read, keyring, issuer, maxStalenessMs, clock } = this.parts
    const readAt = clock.now()
    const { jumps } = clock
    const changes = this.#changes
    const [statuses, { signer }] = await Promise.all([read(), keyring.keys()])
    const lst = (await compress(bitsOf(statuses), { level: constants.Z_BEST_COMPRESSION })).toString('base64url')
    const seconds = Math.max(1, Math.ceil(maxStalenessMs / 1000))
    const iat = Math.floor(statuses.now.getTime() / 1000)
    const iss = issuer()
    const jwt = await signJwt(signer, 'statuslist+jwt', {
      iss, sub: iss + STATUS_LIST_PATH, iat, exp: iat + 2 * seconds, ttl: seconds, status_list: { bits: BITS, lst },
    })
    const etag = `"${createHash('sha256').update(jwt).digest('base64url')}"`
    const token = { jwt, etag, maxAge: Math.ceil(seconds / 2) }
    this.#held = { token, readAt, jumps, changes }
    return token
  }
}

/** Least significant bits first (section 4.1 of the draft). The length says the number of places to a power of two only. */
function bitsOf({ places, invalid, suspended }: Statuses): Buffer {
  let length = LEAST_PLACES
  while (length < places) length *= 2
  const bytes = Buffer.alloc(length / PER_BYTE)
  for (const [status, all] of [[INVALID, invalid], [SUSPENDED, suspended]] as const)
    for (const place of all) bytes[Math.floor(place / PER_BYTE)]! |= status << (BITS * (place % PER_BYTE))
  return bytes
}
