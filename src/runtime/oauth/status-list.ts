/**
 * The status list (draft-ietf-oauth-status-list): two bits for each key that was ever exchanged, so that a gateway that
 * verifies offline learns that a key has ended before what it was exchanged for does.
 */

import { createHash } from 'node:crypto'
import { setTimeout as sleep } from 'node:timers/promises'
import { promisify } from 'node:util'
import { deflate, constants } from 'node:zlib'
import { Problem } from '../../errors.js'
import type { Clock } from '../../clock.js'
import { signJwt, type Keyring } from './keyring.js'
import { BITS, type Statuses } from './statuses.js'

export interface StatusListParts {
  readonly statuses: Statuses
  readonly keyring: Keyring
  /** `iss` of the list. */
  readonly issuer: () => string
  /** Longest time after which a change has to be in the list: `REVOCATION_MAX_STALENESS`. */
  readonly maxStalenessMs: number
  /** Longest that anybody waits for the list. */
  readonly timeoutMs: number
  readonly clock: Clock
}

/** The list, signed, and how it may be kept. */
export interface StatusListToken {
  readonly jwt: string
  readonly etag: string
  /** Seconds. */
  readonly maxAge: number
}

interface Held {
  readonly token: StatusListToken
  /** The statuses that it was made of, and when that began. */
  readonly version: number
  readonly madeAt: number
  /** Since when they are known not to have changed; and how often the clock had jumped, and how many changes had been told, by then. */
  readonly readAt: number
  readonly jumps: number
  readonly changes: number
}

/** Shortest time between two readings, however much changes. */
const REBUILD_MS = 250
/**
 * Runs of equal bytes are all that there is to find in a list of statuses. To look for other repetitions makes it a twentieth smaller, and takes
 * a hundred times as long.
 */
const COMPRESSION = { strategy: constants.Z_RLE, memLevel: constants.Z_MAX_MEMLEVEL }

const compress = promisify<Buffer, typeof COMPRESSION, Buffer>(deflate)

export const STATUS_LIST_PATH = '/.well-known/token-status'

export class StatusList {
  #held: Held | undefined
  #making: Promise<StatusListToken> | undefined
  /** How many changes of keys the feed has told of. */
  #changes = 0
  #compressed: { readonly version: number; readonly lst: string } | undefined

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
   * @throws Problem `database_unavailable` when that takes too long, as it may when all of it has to be read
   */
  current(): Promise<StatusListToken> {
    const held = this.#held
    const { maxStalenessMs, timeoutMs, clock } = this.parts
    const at = clock.now()
    if (held && this.#isRecent(held, at) && (held.changes === this.#changes || at - held.readAt < Math.min(REBUILD_MS, maxStalenessMs / 4))) return Promise.resolve(held.token)
    this.#making ??= Promise.race([this.#make(), sleep(timeoutMs, undefined, { ref: false }).then(tooSlow)]).finally(() => (this.#making = undefined))
    return this.#making
  }

  /** Reads what has changed, and makes a new list where any status did, or where the one that is held gets old. */
  async #make(): Promise<StatusListToken> {
    const { statuses, clock } = this.parts
    const known = { readAt: clock.now(), jumps: clock.jumps, changes: this.#changes }
    const { now } = await statuses.look()
    const held = this.#held
    const { version } = statuses
    if (held && held.version === version && this.#isRecent(held, clock.now())) this.#held = { ...held, ...known }
    else this.#held = { ...known, madeAt: known.readAt, version, token: await this.#sign(await this.#compress(version), now) }
    return this.#held.token
  }

  #isRecent({ jumps, madeAt }: Held, at: number): boolean {
    return jumps === this.parts.clock.jumps && at - madeAt < this.parts.maxStalenessMs / 2
  }

  async #compress(version: number): Promise<string> {
    if (this.#compressed?.version !== version) this.#compressed = { version, lst: (await compress(this.parts.statuses.copy(), COMPRESSION)).toString('base64url') }
    return this.#compressed.lst
  }

  async #sign(lst: string, now: Date): Promise<StatusListToken> {
    const { keyring, issuer, maxStalenessMs } = this.parts
    const { signer } = await keyring.keys()
    const seconds = Math.max(1, Math.ceil(maxStalenessMs / 1000))
    const iat = Math.floor(now.getTime() / 1000)
    const iss = issuer()
    const jwt = await signJwt(signer, 'statuslist+jwt', {
      iss, sub: iss + STATUS_LIST_PATH, iat, exp: iat + 2 * seconds, ttl: seconds, status_list: { bits: BITS, lst },
    })
    const etag = `"${createHash('sha256').update(jwt).digest('base64url')}"`
    return { jwt, etag, maxAge: Math.ceil(seconds / 2) }
  }
}

function tooSlow(): never {
  throw new Problem('database_unavailable', 'The status list is being read. Try again in a moment.', { headers: { 'retry-after': '1' } })
}
