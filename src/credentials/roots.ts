/** Root secrets, and the four keys that each of them gives (HKDF-SHA-256, RFC 5869). */

import { hkdfSync } from 'node:crypto'
import { createMac, type Mac } from './hmac.js'

/** Characters: more than any key has. */
const LONGEST_TAGGED = 160
/** Characters: the secret part of a key has 43. */
const LONGEST_SECRET = 64

/** What is derived from one root secret; the root secret itself is kept nowhere. */
export interface Root {
  /** Public name of the root secret, stored beside every row made under it: 16 hex digits. */
  readonly id: string
  /** Makes the tag inside a key. */
  readonly mac: Mac
  /** Argon2's secret input (RFC 9106, section 3.1): a stolen table alone verifies nothing. */
  readonly pepper: Buffer
  /** Digests a key's secret before argon2 is given it: see `hash.ts`. */
  readonly secretMac: Mac
  /** Encrypts what has to be read again: the private parts of signing keys. 32 bytes, for AES-256. */
  readonly sealing: Buffer
}

/** Newest first: the first makes, all verify. Never empty. */
export type Roots = readonly [Root, ...Root[]]

/** Derives a root from the text of a root secret. The length rule is the config's. */
export function deriveRoot(secret: string): Root {
  const derive = (info: string, bytes: number) =>
    Buffer.from(hkdfSync('sha256', secret, '', `mecha-keys/v1/${info}`, bytes))
  return {
    id: derive('id', 8).toString('hex'),
    mac: createMac(derive('tag', 32), LONGEST_TAGGED),
    pepper: derive('pepper', 32),
    secretMac: createMac(derive('hash-input', 32), LONGEST_SECRET),
    sealing: derive('seal', 32),
  }
}

/** Derives all roots, newest first. */
export function rootsOf(secrets: readonly string[]): Roots {
  return secrets.map(deriveRoot) as unknown as Roots
}
