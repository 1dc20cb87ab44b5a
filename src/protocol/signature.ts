/**
 * Signed requests, as runtimes make them and gateways check them: `X-Signature` is the base64 of an HMAC-SHA-256
 * (RFC 2104) under the Mecha key, over
 *
 * ```
 * <the body's bytes>|<X-Nonce>|<X-Request-Timestamp>
 * ```
 *
 * A body may hold `|`. A nonce and a timestamp may not, so the last two `|` are always the ones between the parts, and
 * no two requests have the same bytes to sign. That is why these functions look at both before anything else.
 *
 * Nothing here looks at a clock, remembers a nonce, or knows whether the key is good.
 */

import { createHmac, timingSafeEqual } from 'node:crypto'

/** The headers of a signed request. */
export const SIGNED_REQUEST_HEADERS = { key: 'X-Mecha-Key', timestamp: 'X-Request-Timestamp', nonce: 'X-Nonce', signature: 'X-Signature' } as const

/** What a nonce must look like: a UUID, hexadecimal, base64 and base64url do. No `|`, and no comma, with which two headers of one name are joined. */
export const NONCE_PATTERN = '^[A-Za-z0-9._~+/=-]{16,128}$'

/** The rule in words, for errors. */
export const NONCE_RULE = 'must be 16 to 128 letters, digits or any of . _ ~ + / = -'

/** What is signed, and with what. */
export interface SignedRequest {
  /** The Mecha key. `secret-token:` in front of it (RFC 8959) is not part of what signs. */
  readonly key: string
  /** The body as it is sent, to the byte; a string is its UTF-8. Without a body, nothing. */
  readonly body: Uint8Array | string
  /** Never used before with this key, by the rule of {@link NONCE_PATTERN}. */
  readonly nonce: string
  /** When the request is made, as {@link parseTimestamp} reads it. */
  readonly timestamp: string
}

const NONCE = new RegExp(NONCE_PATTERN)
const TIMESTAMP = /^(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(?:Z|([+-])([01]\d|2[0-3]):([0-5]\d))$/
/** 32 bytes in base64, with its padding. */
const SIGNATURE = /^[A-Za-z0-9+/]{43}=$/
const SCHEME = 'secret-token:'

/**
 * Signs a request.
 *
 * @example
 * const timestamp = new Date().toISOString()
 * const nonce = randomUUID()
 * headers['X-Signature'] = signRequest({ key, body, nonce, timestamp })
 *
 * @returns 44 characters of base64 (RFC 4648, section 4), padded
 * @throws TypeError when the key is empty, or the nonce or the timestamp breaks its rule. The key is not in its message
 */
export function signRequest(request: SignedRequest): string {
  const { nonce, timestamp } = request
  if (!isNonce(nonce)) throw new TypeError(`the nonce ${NONCE_RULE}`)
  if (parseTimestamp(timestamp) === undefined) throw new TypeError('the timestamp must be a time of RFC 3339')
  const key = bareKey(request.key)
  if (key === '') throw new TypeError('the key is empty')
  return createHmac('sha256', key).update(request.body).update(`|${nonce}|${timestamp}`).digest('base64')
}

/**
 * Whether a signature is that of a request, compared in constant time. Only the one way to write it in base64 is taken:
 * padded, in the standard alphabet, without stray bits. `false` also for what cannot be signed: see {@link signRequest}.
 */
export function isSignatureOf(signature: string, request: SignedRequest): boolean {
  const isSignable = isNonce(request.nonce) && parseTimestamp(request.timestamp) !== undefined && bareKey(request.key) !== ''
  if (!isSignable || !SIGNATURE.test(signature)) return false
  return timingSafeEqual(Buffer.from(signature, 'latin1'), Buffer.from(signRequest(request), 'latin1'))
}

/** Whether a text may be a nonce. */
export function isNonce(text: string): boolean {
  return NONCE.test(text)
}

/**
 * Reads a time of RFC 3339 (section 5.6): `T` and `Z` in upper case, an offset or `Z`, up to 9 digits of a second, a day
 * that is in the calendar, no leap second.
 *
 * @returns milliseconds since 1970, with what is finer cut off, or `undefined` when it is no such time
 */
export function parseTimestamp(text: string): number | undefined {
  const [, local, fraction = '', sign, hours = '0', minutes = '0'] = TIMESTAMP.exec(text) ?? []
  if (local === undefined) return undefined
  const seconds = Date.parse(`${local}Z`)
  // What is not in the calendar, as 30 February and 24:00, is read as another day.
  if (Number.isNaN(seconds) || new Date(seconds).toISOString().slice(0, local.length) !== local) return undefined
  const offset = (Number(hours) * 60 + Number(minutes)) * 60_000
  return seconds + Number(fraction.padEnd(3, '0').slice(0, 3)) + (sign === '+' ? -offset : offset)
}

function bareKey(key: string): string {
  return key.startsWith(SCHEME) ? key.slice(SCHEME.length) : key
}
