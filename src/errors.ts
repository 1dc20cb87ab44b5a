/**
 * Everything that can be answered with an error: a stable code, its status and its title. Each has a page under
 * `docs/errors/`, which the service serves at the problem's `type`.
 */

export const CATALOGUE = {
  invalid_request: [400, 'The request is not valid'],
  malformed_body: [400, 'The body is not what its Content-Type says'],
  contains_secret: [400, 'The request carries a plaintext key where none may be'],
  unsupported_token_type: [400, 'This kind of token cannot be ended by itself'],
  unsupported_grant_type: [400, 'The token endpoint exchanges tokens and does nothing else'],
  invalid_subject_token: [400, 'The subject token is not a valid key'],
  invalid_scope: [400, 'The key does not have this scope'],
  invalid_target: [400, 'The audience or resource cannot be named in a token'],
  unauthenticated: [401, 'No valid credential was presented'],
  insufficient_scope: [403, 'The token does not allow this'],
  mecha_mismatch: [403, 'The key is of another Mecha'],
  crews_restricted: [403, 'The token is narrowed to some crews'],
  not_found: [404, 'There is no such thing'],
  route_not_found: [404, 'There is no such path'],
  method_not_allowed: [405, 'The path does not take this method'],
  not_acceptable: [406, 'It cannot be had in the form that was asked for'],
  request_timeout: [408, 'The request did not arrive in time'],
  key_revoked: [409, 'The key is revoked'],
  key_expired: [409, 'The key is expired'],
  key_disabled: [409, 'The key is disabled'],
  key_already_rotated: [409, 'The key has been rotated already'],
  key_limit_reached: [409, 'The Mecha has as many keys as it may have'],
  idempotent_key_in_use: [409, 'The key that this Idempotency-Key made cannot be revealed again'],
  nonce_reused: [409, 'The nonce was taken before'],
  body_too_large: [413, 'The body is too large'],
  uri_too_long: [414, 'The path is too long'],
  unsupported_media_type: [415, 'The Content-Type is not supported'],
  idempotency_key_reused: [422, 'The Idempotency-Key was used for another request'],
  rate_limited: [429, 'Too many requests came in a minute'],
  headers_too_large: [431, 'The headers are too large'],
  internal_error: [500, 'Something went wrong here'],
  overloaded: [503, 'More is asked for than can be done'],
  database_unavailable: [503, 'The database does not answer'],
  feed_stale: [503, 'Nothing vouches for what is held in memory'],
  database_restored: [503, 'The database went back, and may have forgotten revocations'],
  gateway_unauthenticated: [503, 'The proxy that asks has no valid credential here'],
  issuer_unavailable: [503, 'The issuer of operator tokens does not answer'],
  root_secret_missing: [503, 'The key needs a root secret that this process was not given'],
  signing_key_unavailable: [503, 'There is no key to sign with'],
} as const satisfies Record<string, readonly [status: number, title: string]>

export type ErrorCode = keyof typeof CATALOGUE
export const ERROR_CODES = Object.keys(CATALOGUE) as ErrorCode[]

/** One broken rule of a request: which field, which rule, and what would be right. */
export interface FieldError {
  /** `body.expires_in`, `query.limit`, `headers.idempotency-key`. */
  readonly field: string
  readonly rule: string
  readonly message: string
}

/** An error that is answered as it stands. Its detail is for the caller: no value of a secret field may be in it. */
export class Problem extends Error {
  readonly status: number
  readonly title: string
  constructor(
    readonly code: ErrorCode,
    readonly detail: string,
    readonly extra: {
      readonly errors?: readonly FieldError[]
      readonly headers?: Readonly<Record<string, string>>
      /** Where the caller cannot take the catalogue's. */
      readonly status?: number
    } = {},
  ) {
    super(`${code}: ${detail}`)
    this.status = extra.status ?? CATALOGUE[code][0]
    this.title = CATALOGUE[code][1]
  }

  /** The body, as RFC 9457 has it, with a stable `code`. Its type is a path of this service, where its page is. */
  toJSON() {
    const { code, status, title, detail } = this
    const { errors } = this.extra
    return { type: `/errors/${code}`, title, status, detail, code, ...(errors && { errors }) }
  }
}

/** A request that breaks the rule of one field. */
export function invalid(field: string, rule: string, message: string): Problem {
  return invalidRequest([{ field, rule, message }])
}

/** Broken rules that an answer names, and that its sentence does: some clients break a thousand at once. */
const MAX_ERRORS = 100
const MAX_TOLD = 5

/** A request that breaks these rules. */
export function invalidRequest(broken: readonly FieldError[]): Problem {
  const told = broken.slice(0, MAX_TOLD).map(({ field, message }) => `${field} ${message}`)
  const more = broken.length - told.length
  return new Problem('invalid_request', told.join('; ') + (more > 0 ? `; and ${more} more` : ''), { errors: broken.slice(0, MAX_ERRORS) })
}

/** More is asked for than can be done now. Nothing of it has been begun. What the database cancelled has the same code: see `db/outage.ts`. */
export function overloaded(): Problem {
  return OVERLOADED
}
/** Made once: to make an error takes longer than to refuse for it, and who sheds has no time for that. */
const OVERLOADED = new Problem('overloaded', 'Try again in a moment.', { headers: { 'retry-after': '1' } })

/** Nothing may be answered from the database until an operator has looked after it. */
export function databaseRestored(): Problem {
  return new Problem('database_restored', 'Nobody can say whether keys that were revoked are revoked still.', { headers: { 'retry-after': '1' } })
}

/** Nobody can say whether what is known of keys still holds. */
export function feedStale(): Problem {
  return new Problem('feed_stale', 'Try again in a moment.', { headers: { 'retry-after': '1' } })
}

/** For the log: there is nobody to tell. */
export function abandoned(): Problem {
  return new Problem('request_timeout', 'The caller did not wait for the answer.')
}

/** What is not there, or not the caller's: the same answer, to the byte. */
export function notFound(): Problem {
  return new Problem('not_found', 'There is no such thing, or it is not yours.')
}

/** A setting or a file of the installation is wrong: the start ends with one line and exit code 78 (EX_CONFIG). */
export class ConfigError extends Error {}
