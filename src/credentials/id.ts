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

// 128 bits are 2 characters for the first 8 of them, and 4 for each 20 that follow: 5 hex digits, which a number holds.
const HEAD_HEX = 2
const CHUNK_HEX = 5
const HEAD = 2
const CHUNK = 4

/** Encodes a UUID as TypeID's 26 characters. */
export function encodeId(uuid: string): string {
  const hex = uuid.replaceAll('-', '')
  const parts = [base32(parseInt(hex.slice(0, HEAD_HEX), 16), HEAD)]
  for (let at = HEAD_HEX; at < hex.length; at += CHUNK_HEX) parts.push(base32(parseInt(hex.slice(at, at + CHUNK_HEX), 16), CHUNK))
  // Joined and not added up: a sum of strings keeps its parts, and these are kept by the thousand (`runtime/verify/credential-cache.ts`).
  return parts.join('')
}

/** The UUID behind 26 characters of {@link ID_PATTERN}, which the caller has checked. */
export function decodeId(text: string): string {
  let hex = valueOf(text.slice(0, HEAD)).toString(16).padStart(HEAD_HEX, '0')
  for (let at = HEAD; at < text.length; at += CHUNK) hex += valueOf(text.slice(at, at + CHUNK)).toString(16).padStart(CHUNK_HEX, '0')
  return `${hex.slice(0, 8)}-${hex.slice(8, 12)}-${hex.slice(12, 16)}-${hex.slice(16, 20)}-${hex.slice(20)}`
}

function base32(value: number, length: number): string {
  let text = ''
  for (let bits = 5 * (length - 1); bits >= 0; bits -= 5) text += ALPHABET.charAt((value >> bits) & 31)
  return text
}

function valueOf(text: string): number {
  let value = 0
  for (const character of text) value = (value << 5) | ALPHABET.indexOf(character)
  return value
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
