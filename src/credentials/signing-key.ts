/**
 * Keys that sign what gateways verify far from here: how they are made, kept and replaced.
 *
 * The life of one, on the database's clock:
 *
 * ```
 * made, published              signs                     its successor signs                       gone
 *      ├──────── LEAD ───────────┼──────────── … ───────────────┼────────────── KEEP ────────────────┤
 * ```
 *
 * No replica works with a set of keys that is older than {@link MAX_KEYS_AGE}, and no gateway with one older than
 * {@link JWKS_MAX_AGE}. LEAD is longer than the two together: when a key begins to sign, everybody has it. KEEP is the
 * longest life of what it signed, and the same again: when it goes, nothing of it is alive.
 */

import { createHash, createPrivateKey, createPublicKey, generateKeyPairSync, type KeyObject } from 'node:crypto'
import type { Root, Roots } from './roots.js'
import { seal, unseal } from './seal.js'

/** What a key may sign with: Ed25519 (RFC 8037), or ECDSA on P-256 for gateways that know nothing else (RFC 7518). */
export const SIGNING_ALGORITHMS = ['EdDSA', 'ES256'] as const
export type SigningAlgorithm = (typeof SIGNING_ALGORITHMS)[number]

/** Seconds, all of these. Longest that a JWT may live. */
export const MAX_TOKEN_TTL = 3600
/** How long others may keep the published keys. */
export const JWKS_MAX_AGE = 300
/** Longest that a replica works with keys that it has read. */
export const MAX_KEYS_AGE = 120
/** From the making of a key to the first JWT that it signs. */
export const LEAD = 600
/** From the first JWT of a key's successor to the key's end. */
export const KEEP = MAX_TOKEN_TTL + LEAD

/** A signing key as it is stored. Its public part is not: it follows from the private one, which nobody can exchange. */
export interface StoredSigningKey {
  /** RFC 7638 thumbprint of the public part. */
  readonly kid: string
  readonly alg: SigningAlgorithm
  /** The private part, PKCS #8, sealed. */
  readonly sealed: Buffer
  /** Id of the root that it is sealed under. */
  readonly root: string
}

/** A public key as it is published (RFC 7517). */
export interface PublicJwk {
  readonly kty: string
  readonly crv: string
  readonly x: string
  readonly y?: string
  readonly kid: string
  readonly alg: SigningAlgorithm
  readonly use: 'sig'
}

/** A signing key, ready for use. */
export interface SigningKey {
  readonly kid: string
  readonly alg: SigningAlgorithm
  readonly privateKey: KeyObject
  readonly publicKey: KeyObject
  readonly jwk: PublicJwk
}

export function makeSigningKey(alg: SigningAlgorithm, root: Root): StoredSigningKey {
  const { privateKey, publicKey } = alg === 'EdDSA' ? generateKeyPairSync('ed25519') : generateKeyPairSync('ec', { namedCurve: 'P-256' })
  const kid = thumbprint(publicKey)
  return { kid, alg, sealed: seal(pkcs8(privateKey), purposeOf({ kid, alg }), root), root: root.id }
}

/** Thrown when the root secret that a signing key is sealed under is not configured. */
export class RootUnknown extends Error {}

/**
 * Opens a stored key.
 *
 * @throws RootUnknown, or another Error when the row has been changed
 */
export function openSigningKey(stored: StoredSigningKey, roots: Roots): SigningKey {
  const { kid, alg } = stored
  const privateKey = createPrivateKey({ key: open(stored, roots), format: 'der', type: 'pkcs8' })
  const publicKey = createPublicKey(privateKey)
  return { kid, alg, privateKey, publicKey, jwk: { ...publicMembers(publicKey), kid, alg, use: 'sig' } }
}

/** Those of some rows that are not damaged: one whose root is configured and that cannot be opened is opened by nobody, ever. */
export function soundOf<K extends StoredSigningKey>(rows: readonly K[], roots: Roots, onDamaged: (row: K, error: unknown) => void): K[] {
  return rows.filter((row) => {
    try {
      openSigningKey(row, roots)
    } catch (error) {
      if (error instanceof RootUnknown) return true
      onDamaged(row, error)
      return false
    }
    return true
  })
}

/** The same key, sealed under the newest root. */
export function resealSigningKey(stored: StoredSigningKey, roots: Roots): StoredSigningKey {
  const [newest] = roots
  return { ...stored, sealed: seal(open(stored, roots), purposeOf(stored), newest), root: newest.id }
}

interface Timed {
  /** From when it signs. */
  readonly signs_from: Date
}

/** The one of some keys that signs at an instant, in milliseconds. */
export function signerAt<K extends Timed>(keys: readonly K[], now: number): K | undefined {
  return keys.filter((key) => key.signs_from.getTime() <= now).reduce<K | undefined>((latest, key) => (latest && latest.signs_from >= key.signs_from ? latest : key), undefined)
}

/**
 * The instant by which the signing one of all keys is chosen: now, or the beginning of the first of them. Earlier than that is
 * only a clock that was set back, and somebody has to sign meanwhile.
 */
export function signingTime(keys: readonly Timed[], now: number): number {
  const beginnings = keys.map((key) => key.signs_from.getTime())
  return keys.length > 0 ? Math.max(now, Math.min(...beginnings)) : now
}

/** Those of some keys that nothing alive was signed with, and that sign no more. */
export function endedBy<K extends Timed>(keys: readonly K[], now: number): K[] {
  const signer = signerAt(keys, now - KEEP * 1000)
  return signer ? keys.filter((key) => key.signs_from < signer.signs_from) : []
}

function open(stored: StoredSigningKey, roots: Roots): Buffer {
  const root = roots.find(({ id }) => id === stored.root)
  if (!root) throw new RootUnknown(`signing key ${stored.kid} is sealed under the root secret ${stored.root}, which is not configured`)
  return unseal(stored.sealed, purposeOf(stored), root)
}

/** RFC 7638: the members that a key needs, in the order of their names. */
function thumbprint(publicKey: KeyObject): string {
  return createHash('sha256').update(JSON.stringify(publicMembers(publicKey))).digest('base64url')
}

function publicMembers(publicKey: KeyObject): Pick<PublicJwk, 'crv' | 'kty' | 'x' | 'y'> {
  const { crv, kty, x, y } = publicKey.export({ format: 'jwk' })
  return { crv: crv!, kty: kty!, x: x!, ...(y !== undefined && { y }) }
}

function purposeOf({ kid, alg }: Pick<StoredSigningKey, 'kid' | 'alg'>): string {
  return `signing-key\n${alg}\n${kid}`
}

function pkcs8(key: KeyObject): Buffer {
  return key.export({ type: 'pkcs8', format: 'der' })
}
