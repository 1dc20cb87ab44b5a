/** What a gateway answers a runtime that it does not let pass: problems (RFC 9457), with a challenge where one belongs (RFC 6750). */

import { bearerChallenge } from '../protocol/bearer.js'
import type { Requirements } from '../protocol/verdict.js'

export interface Refusal {
  readonly status: 401 | 403 | 413 | 503
  readonly headers: Readonly<Record<string, string>>
  /** JSON. */
  readonly body: string
}

/** A gateway's realm is what it protects, and not the service that its own credential is for. */
const REALM = 'mecha'
const TITLES = { 401: 'Unauthorized', 403: 'Forbidden', 413: 'Content Too Large', 503: 'Service Unavailable' } as const

/** No key was presented. */
export function withoutKey(): Refusal {
  return refusal(401, 'unauthenticated', 'Send a Mecha key: X-Mecha-Key: <key>, or Authorization: Bearer <key>.', { 'www-authenticate': bearerChallenge(REALM) })
}

/** A key, or a signature made with it, is not good, or not for this. */
export function refusedKey(code: string, { scopes = [] }: Requirements = {}): Refusal {
  if (code === 'mecha_mismatch') return refusal(403, code, 'The key is of another Mecha.')
  if (code === 'insufficient_scope')
    return refusal(403, code, 'The key lacks a scope.', { 'www-authenticate': bearerChallenge(REALM, { error: 'insufficient_scope', scope: scopes.join(' ') }) })
  return refusal(401, code, 'The key, or the signature made with it, is not valid.', { 'www-authenticate': bearerChallenge(REALM, { error: 'invalid_token' }) })
}

/** Nobody can say now. It is neither a yes nor a no. */
export function unavailable(): Refusal {
  return refusal(503, 'verifier_unavailable', 'Try again in a moment.', { 'retry-after': '1' })
}

/** A signed body cannot be checked when there is more of it than may be held. */
export function bodyTooLarge(): Refusal {
  return refusal(413, 'body_too_large', 'The body is too large.')
}

function refusal(status: Refusal['status'], code: string, detail: string, headers: Record<string, string> = {}): Refusal {
  return {
    status,
    headers: { 'content-type': 'application/problem+json', 'cache-control': 'no-store', ...headers },
    body: JSON.stringify({ type: 'about:blank', title: TITLES[status], status, code, detail }),
  }
}
