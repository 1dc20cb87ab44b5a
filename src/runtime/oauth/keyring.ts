/** The signing keys as a replica has them: read from time to time, so that a rotation is noticed without a restart. */

import { setTimeout as sleep } from 'node:timers/promises'
import type { FastifyBaseLogger } from 'fastify'
import { SignJWT, type JWTPayload } from 'jose'
import { Problem } from '../../errors.js'
import type { Roots } from '../../credentials/roots.js'
import { endedBy, MAX_KEYS_AGE, MAX_TOKEN_TTL, openSigningKey, RootUnknown, signerAt, signingTime, soundOf, type SigningKey } from '../../credentials/signing-key.js'
import type { Clock } from '../../clock.js'
import type { FoundSigningKey } from './store.js'

export interface KeyringParts {
  readonly read: () => Promise<{ readonly keys: readonly FoundSigningKey[]; readonly now: Date }>
  readonly roots: Roots
  /** Age from which keys are read again. */
  readonly reloadMs: number
  readonly clock: Clock
  readonly log: FastifyBaseLogger
}

/** Signing keys at an instant. */
export interface SigningKeys {
  /** The database's clock, in milliseconds. */
  readonly now: number
  readonly signer: SigningKey
  /** All that gateways need to verify what is alive, and what will be signed soon. */
  readonly published: readonly SigningKey[]
}

interface Held {
  /** Without those that are damaged: for everybody it is as if they were not there. */
  readonly keys: readonly (FoundSigningKey & { readonly key: SigningKey | undefined })[]
  /** When they were asked for, and on the database's clock. */
  readonly readAt: number
  /** How often the clock had jumped by then. */
  readonly jumps: number
  readonly databaseTime: number
}

/** What there is serves while it may, when the database takes longer than this; and for so long it is not asked again. */
const PATIENCE_MS = 1000

export class Keyring {
  #held: Held | undefined
  #reading: Promise<Held> | undefined
  #retryAt = -Infinity
  /** Names of keys that cannot be opened, of which the log has been told. */
  readonly #reported = new Set<string>()

  constructor(private readonly parts: KeyringParts) {}

  /**
   * The keys as of now. Where the one whose turn it is cannot be opened here, the latest that can be signs in its place, for as
   * long as everybody else still publishes it when the last of what it signs expires.
   *
   * @throws Problem `signing_key_unavailable` when there is none that could sign, or what the database throws when the
   *   keys are older than {@link MAX_KEYS_AGE} and cannot be read
   */
  async keys(): Promise<SigningKeys> {
    const { keys, databaseTime, readAt } = await this.#current()
    const now = databaseTime + (this.parts.clock.now() - readAt)
    const tooOldToSign = new Set(endedBy(keys, now + MAX_TOKEN_TTL * 1000))
    const signer = signerAt(keys.filter((one) => one.key && !tooOldToSign.has(one)), signingTime(keys, now))?.key
    if (!signer) throw unavailable()
    const ended = new Set(endedBy(keys, now))
    const published = keys.flatMap((one) => (one.key && !ended.has(one) ? [one.key] : []))
    return { now, signer, published }
  }

  async #current(): Promise<Held> {
    const held = this.#held
    const { clock } = this.parts
    const at = clock.now()
    const age = held && held.jumps === clock.jumps ? at - held.readAt : Infinity
    if (held && age < this.parts.reloadMs) return held
    if (!held || age > MAX_KEYS_AGE * 1000) return this.#read()
    if (at < this.#retryAt) return held
    return Promise.race([this.#read().catch(() => held), sleep(PATIENCE_MS, held, { ref: false })])
  }

  #read(): Promise<Held> {
    this.#reading ??= this.#readNow().finally(() => (this.#reading = undefined))
    return this.#reading
  }

  async #readNow(): Promise<Held> {
    const readAt = this.parts.clock.now()
    const { jumps } = this.parts.clock
    this.#retryAt = readAt + PATIENCE_MS
    const { keys, now } = await this.parts.read()
    if (keys.length === 0) throw unavailable()
    const sound = soundOf(keys, this.parts.roots, ({ kid }) => this.#report(kid, `signing key ${kid} is not as it was made`))
    this.#held = { keys: sound.map((stored) => ({ ...stored, key: this.#opened(stored) })), readAt, jumps, databaseTime: now.getTime() }
    return this.#held
  }

  /** One that cannot be opened neither signs nor is published. The others do what they did. */
  #opened(stored: FoundSigningKey): SigningKey | undefined {
    try {
      const key = openSigningKey(stored, this.parts.roots)
      this.#reported.delete(stored.kid)
      return key
    } catch (error) {
      if (!(error instanceof RootUnknown)) throw error
      // Sealed anew under a root that this replica has not been given yet, it is the same key.
      const before = this.#held?.keys.find(({ kid, alg }) => kid === stored.kid && alg === stored.alg)?.key
      if (!before) this.#report(stored.kid, error.message)
      return before
    }
  }

  /** Once, and not with every reading: the log would say the same each 30 seconds. */
  #report(kid: string, about: string): void {
    if (this.#reported.has(kid)) return
    this.#reported.add(kid)
    this.parts.log.error(about)
  }
}

/** A JWT of some type (RFC 8725, section 3.11: what is of one type is never taken for another). */
export function signJwt({ kid, alg, privateKey }: SigningKey, typ: string, claims: JWTPayload): Promise<string> {
  return new SignJWT(claims).setProtectedHeader({ alg, typ, kid }).sign(privateKey)
}

function unavailable(): Problem {
  return new Problem('signing_key_unavailable', 'Try again in a moment.', { headers: { 'retry-after': '5' } })
}
