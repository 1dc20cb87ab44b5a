/**
 * Public ids: a UUIDv7 (RFC 9562) in TypeID's base32 (26 characters, Crockford's alphabet in lower case),
 * behind a prefix that says what it names: `key_01jd9p5v3f…`, `gw_01jd9p5v3f…`.
 */

import { v7 as uuidv7 } from 'uuid'

const ALPHABET = '0123456789abcdefghjkmnpqrstvwxyz'
const ID_PREFIX = { mecha: 'key_', gateway: 'gw_' } as const

/** What a credential belongs to: a Mecha (its key) or a gateway (its credential). */
export type CredentialKind = keyof typeof ID_PREFIX

/** 26 characters of base32, the first at most `7`: 26 × 5 bits are two more than a UUID has. */
export const ID_PATTERN = '[0-7][0-9a-hjkmnp-tv-z]{25}'

/** A new time-ordered id, as PostgreSQL's `uuid` type reads it. */
export function newId(): string {
  return uuidv7()
}

/** Encodes a UUID as TypeID's 26 characters. */
export function encodeId(uuid: string): string {
  let value = BigInt(`0x${uuid.replaceAll('-', '')}`)
  let text = ''
  for (let i = 0; i < 26; i++) {
    text = ALPHABET.charAt(Number(value & 31n)) + text
    value >>= 5n
  }
  return text
}

/** The UUID behind 26 characters of {@link ID_PATTERN}, which the caller has checked. */
export function decodeId(text: string): string {
  let value = 0n
  for (const character of text) value = (value << 5n) | BigInt(ALPHABET.indexOf(character))
  const hex = value.toString(16).padStart(32, '0')
  return `${hex.slice(0, 8)}-${hex.slice(8, 12)}-${hex.slice(12, 16)}-${hex.slice(16, 20)}-${hex.slice(20)}`
}

/** The id as the API shows it. */
export function publicId(kind: CredentialKind, uuid: string): string {
  return ID_PREFIX[kind] + encodeId(uuid)
}

/** The UUID behind an id of the API, or `undefined` when the text is not one of that kind. */
export function parsePublicId(kind: CredentialKind, text: string): string | undefined {
  const prefix = ID_PREFIX[kind]
  if (!text.startsWith(prefix)) return undefined
  const encoded = text.slice(prefix.length)
  return new RegExp(`^${ID_PATTERN}$`).test(encoded) ? decodeId(encoded) : undefined
}
