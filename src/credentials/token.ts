/**
 * The plaintext of a key:
 *
 * ```
 * mecha_01jd9p5v3fe8rr2k7m4q9wx0zt_<43 base62: 256 random bits><11 base62: 64-bit tag><6 base62: CRC-32>
 * ```
 *
 * Anyone can check the CRC-32, which tells a typo offline. Only the service can make the tag, which tells it that a
 * key was never issued here before anything is looked up. Neither authenticates: the secret's argon2id hash does.
 */

import { randomBytes } from 'node:crypto'
import { crc32 } from 'node:zlib'
import { decodeId, encodeId, ID_PATTERN } from './id.js'
import type { Root, Roots } from './roots.js'

const BASE62 = '0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz'
/** The value of each digit, by its character's code. */
const DIGIT = Uint8Array.from({ length: 128 }, (_, code) => Math.max(0, BASE62.indexOf(String.fromCharCode(code))))
const EIGHT_DIGITS = 62n ** 8n
const MAX_UINT32 = 2 ** 32 - 1
const ID_LENGTH = 26
const SECRET_LENGTH = 43
const TAG_LENGTH = 11
const CHECKSUM_LENGTH = 6
const TAIL_LENGTH = SECRET_LENGTH + TAG_LENGTH + CHECKSUM_LENGTH

const PREFIX_PATTERN = '[a-z][a-z0-9]{0,15}(?:_[a-z0-9]{1,15}){0,2}'
const SHAPE = `(${PREFIX_PATTERN})_(${ID_PATTERN})_([0-9A-Za-z]{${TAIL_LENGTH}})`
const WHOLE = new RegExp(`^${SHAPE}$`)
const ANYWHERE = new RegExp(SHAPE, 'g')
/** Longer than any key, so that what is parsed is bounded. */
const MAX_LENGTH = 160

/** What a prefix must look like: one to three words of lower case letters and digits, joined by `_`. */
export const PREFIX = new RegExp(`^${PREFIX_PATTERN}$`)

/**
 * A well-formed key. Only its shape and checksum have been checked. Its parts are cut out when they are asked for: a
 * forged key never comes to most of them.
 */
export class Token {
  /** @param text the key as it was presented, without `secret-token:` */
  constructor(readonly text: string) {}

  get prefix(): string {
    return this.text.slice(0, -(1 + ID_LENGTH + 1 + TAIL_LENGTH))
  }

  /** The key's id, as a UUID. */
  get id(): string {
    return decodeId(this.text.slice(-(ID_LENGTH + 1 + TAIL_LENGTH), -(1 + TAIL_LENGTH)))
  }

  /** 43 characters: the part that nobody may ever see again. */
  get secret(): string {
    return this.text.slice(-TAIL_LENGTH, -(TAG_LENGTH + CHECKSUM_LENGTH))
  }

  get tag(): string {
    return this.text.slice(-(TAG_LENGTH + CHECKSUM_LENGTH), -CHECKSUM_LENGTH)
  }

  /** All that precedes the tag, which is what the tag covers. */
  get tagged(): string {
    return this.text.slice(0, -(TAG_LENGTH + CHECKSUM_LENGTH))
  }
}

/** Makes a new key for an id: 256 random bits, tagged under `root`. */
export function makeToken(prefix: string, id: string, root: Root): Token {
  const secret = base62(BigInt(`0x${randomBytes(32).toString('hex')}`), SECRET_LENGTH)
  const tagged = `${prefix}_${encodeId(id)}_${secret}`
  const checked = tagged + tagOf(tagged, root)
  return new Token(checked + checksumOf(checked))
}

/**
 * Takes a presented key apart.
 *
 * @param presented the key, bare or as an RFC 8959 `secret-token:` URI
 * @returns `undefined` when the shape or the checksum is wrong
 */
export function parseToken(presented: string): Token | undefined {
  if (presented.length > MAX_LENGTH) return undefined
  const text = bareToken(presented)
  if (!WHOLE.test(text)) return undefined
  const { high, low } = decodeBase62(text.slice(-CHECKSUM_LENGTH))
  return high === 0 && low === crc32(text.slice(0, -CHECKSUM_LENGTH)) ? new Token(text) : undefined
}

/** A presented key without the scheme of RFC 8959. */
export function bareToken(presented: string): string {
  return presented.startsWith('secret-token:') ? presented.slice('secret-token:'.length) : presented
}

/** Whether a token has the form of a JWT, which no key has. */
export function isJwt(presented: string): boolean {
  return presented.split('.').length === 3
}

/** Whether one of the roots made this key's tag, compared in constant time. */
export function isTaggedByUs({ tag, tagged }: Pick<Token, 'tag' | 'tagged'>, roots: Roots): boolean {
  const presented = decodeBase62(tag)
  return roots.some((root) => {
    const { high, low } = first64Bits(root.mac(tagged))
    return ((high ^ presented.high) | (low ^ presented.low)) === 0 && presented.high <= MAX_UINT32
  })
}

/** Whether a text holds a well-formed key anywhere: what must not be stored, logged or echoed. */
export function containsToken(text: string): boolean {
  // The lookahead makes matches overlap, so that a key hidden behind a longer word before it is still found.
  for (const match of text.matchAll(new RegExp(`(?=(${SHAPE}))`, 'g'))) if (parseToken(match[1]!)) return true
  return false
}

/** The text with everything that has a key's shape masked, right checksum or not. */
export function redactTokens(text: string): string {
  return text.replace(ANYWHERE, '[redacted key]')
}

/** First 64 bits of HMAC-SHA-256 over all that precedes the tag. */
function tagOf(tagged: string, root: Root): string {
  const { high, low } = first64Bits(root.mac(tagged))
  return base62((BigInt(high) << 32n) | BigInt(low), TAG_LENGTH)
}

function checksumOf(checked: string): string {
  return base62(BigInt(crc32(checked)), CHECKSUM_LENGTH)
}

/** A number of up to 64 bits in two halves: what is checked with every verify is checked without a BigInt. */
interface Halves {
  readonly high: number
  readonly low: number
}

function first64Bits(mac: string): Halves {
  const half = (at: number) => ((mac.charCodeAt(at) << 24) | (mac.charCodeAt(at + 1) << 16) | (mac.charCodeAt(at + 2) << 8) | mac.charCodeAt(at + 3)) >>> 0
  return { high: half(0), low: half(4) }
}

/** Fixed-width base62, most significant digit first. A BigInt is divided once for eight digits: to do so for each took four times as long. */
function base62(value: bigint, length: number): string {
  let text = ''
  for (let rest = value; rest > 0n; rest /= EIGHT_DIGITS) text = eightDigits(Number(rest % EIGHT_DIGITS)) + text
  return text.padStart(length, '0').slice(-length)
}

function eightDigits(value: number): string {
  let text = ''
  for (let rest = value, i = 0; i < 8; i++) {
    text = BASE62.charAt(rest % 62) + text
    rest = Math.floor(rest / 62)
  }
  return text
}

/** Up to 11 digits of base62. What has more than 64 bits has a `high` above {@link MAX_UINT32}. */
function decodeBase62(text: string): Halves {
  let high = 0
  let low = 0
  for (let i = 0; i < text.length; i++) {
    const sum = low * 62 + DIGIT[text.charCodeAt(i)]!
    low = sum % 2 ** 32
    high = high * 62 + (sum - low) / 2 ** 32
  }
  return { high, low }
}
