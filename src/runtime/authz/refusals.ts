/**
 * How authz refuses. Refusals are made once where they can be, because making an error takes longer than refusing a key.
 */

import { Problem } from '../../errors.js'
import { challenge } from '../../http/challenge.js'
import { containsToken } from '../../credentials/token.js'
import type { RefusalCode, Requirements } from '../../protocol/verdict.js'
import { NOBODY } from './identity-headers.js'

/** A problem as a proxy may be told it: with no other status than it can take, and with every header that it copies. */
export function asRefusal({ code, detail, extra, status }: Problem, unavailable: 403 | 503): Problem {
  return new Problem(code, detail, {
    ...extra,
    status: status === 401 ? 401 : status >= 500 ? unavailable : 403,
    headers: { ...extra.headers, ...NOBODY },
  })
}

/** Not a 401: a client would take that for its key's, and throw a good key away. What is wrong with the credential is written to the log alone. */
export const NO_GATEWAY = new Problem('gateway_unauthenticated', 'The proxy has to show a good gateway credential: X-Gateway-Authorization: Bearer <credential>. The key was not looked at.', { headers: { 'retry-after': '1' } })
export const NO_KEY = unauthenticated('Send a Mecha key: X-Mecha-Key: <key>, or Authorization: Bearer <key>.')
/** RFC 6750, section 2: a client sends one. */
export const TWO_KEYS = unauthenticated('Send the key in one header, not in two.', 'invalid_token')
const INVALID: Record<Exclude<RefusalCode, 'mecha_mismatch' | 'insufficient_scope'>, Problem> = {
  malformed: unauthenticated('This is not a Mecha key.', 'invalid_token'),
  unknown: unauthenticated('There is no such key.', 'invalid_token'),
  revoked: unauthenticated('The key is revoked.', 'invalid_token'),
  expired: unauthenticated('The key has expired.', 'invalid_token'),
  disabled: unauthenticated('The key is disabled.', 'invalid_token'),
}
const OTHER_MECHA = forbidden('mecha_mismatch', 'The key is of another Mecha.')
/** What a challenge may name (RFC 6750, section 3): the proxy's own text, unless it leaves the client's query in place. */
const SCOPE = /^[\x21\x23-\x5b\x5d-\x7e]{1,128}$/

/** Why a key that is not good, or does not meet the requirements, is refused. */
export function refusedKey(code: RefusalCode, { scopes = [] }: Requirements): Problem {
  if (code === 'mecha_mismatch') return OTHER_MECHA
  if (code !== 'insufficient_scope') return INVALID[code]
  const named = scopes.join(' ')
  const isFit = scopes.every((scope) => SCOPE.test(scope)) && scopes.length <= 50 && !containsToken(named)
  return forbidden(code, 'The key does not have every scope that is asked for.', isFit ? { scope: named } : {})
}

function unauthenticated(detail: string, error?: 'invalid_token'): Problem {
  const headers = { 'www-authenticate': challenge(error ? { error, error_description: detail } : undefined), ...NOBODY }
  return new Problem('unauthenticated', detail, { headers })
}

function forbidden(code: 'mecha_mismatch' | 'insufficient_scope', detail: string, more: { readonly scope?: string } = {}): Problem {
  const headers = { 'www-authenticate': challenge({ error: 'insufficient_scope', error_description: detail, ...more }), ...NOBODY }
  return new Problem(code, detail, { headers })
}
