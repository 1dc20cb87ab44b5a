/** Token exchange (RFC 8693): a runtime gives its Mecha key and gets a JWT of a few minutes, which gateways verify offline. */

import type { Static } from 'typebox'
import { invalid, Problem } from '../../errors.js'
import { tooManyCalls } from '../../http/rate-limit.js'
import { parseHandle } from '../../credentials/handle.js'
import { newId, publicId, encodeId } from '../../credentials/id.js'
import type { CachedKey } from '../verify/credential-cache.js'
import type { Caller } from '../gateway-auth/callers.js'
import { signJwt } from './keyring.js'
import type { OAuthParts } from './deps.js'
import { ACCESS_TOKEN, ACCESS_TOKEN_TYP, JWT, TOKEN_EXCHANGE, type TokenAnswer, type TokenBody } from './schemas.js'
import { STATUS_LIST_PATH } from './status-list.js'

/** Most audiences and resources of one token. */
const MAX_AUDIENCES = 10

/**
 * Exchanges a key. Any number of times: the JWTs of one key live and die with it.
 *
 * @throws Problem `unsupported_grant_type`, `invalid_request`, `invalid_subject_token` (whatever is wrong with the key:
 *   nothing is told of it), `rate_limited`, `invalid_scope`, `invalid_target`, `signing_key_unavailable`, and what verify throws
 */
export async function exchange(parts: OAuthParts, body: Static<typeof TokenBody>, caller: Caller): Promise<Static<typeof TokenAnswer>> {
  const { subjectToken, issuedType, audience } = readRequest(body)
  const key = await parts.verifier.verifyPresented(subjectToken, caller)
  if (typeof key === 'string') throw invalidSubject()
  // Only now: who does not hold the key cannot use up what its holder may do.
  const { calls, endsInMs } = parts.exchanges.count(key.id)
  if (calls > parts.perMinute.key) throw tooManyCalls('This key was exchanged too often. Use a JWT until it expires.', endsInMs)
  const scopes = grantedScopes(key, body.scope)
  const { now, signer } = await parts.keyring.keys()
  const iat = Math.floor(now / 1000)
  const exp = Math.min(iat + parts.ttlSeconds, key.expires_at === null ? Infinity : Math.floor(key.expires_at / 1000))
  // A key whose end is less than a second away is at its end.
  if (exp <= iat) throw invalidSubject()
  const idx = await parts.places.placeOf(key.id, () => caller.signal)
  const { handle, crew } = parseHandle(key.mecha!)
  const iss = parts.issuer()
  const scope = scopes.join(' ')
  const access_token = await signJwt(signer, ACCESS_TOKEN_TYP, {
    iss, sub: handle, client_id: handle, aud: audience ?? iss, iat, exp, jti: encodeId(newId()),
    org_id: key.org_id!, crew, ...(scope && { scope }), key_id: publicId('mecha', key.id),
    status: { status_list: { idx, uri: iss + STATUS_LIST_PATH } },
  })
  return { access_token, issued_token_type: issuedType, token_type: 'Bearer', expires_in: exp - iat, ...(scope && { scope }) }
}

/** What is asked for. A parameter without a value is as if it were not there (RFC 6749, section 3.2). */
function readRequest(body: Static<typeof TokenBody>) {
  if (body.grant_type !== TOKEN_EXCHANGE) throw new Problem('unsupported_grant_type', `grant_type must be ${TOKEN_EXCHANGE}.`)
  if (!body.subject_token) throw invalid('body.subject_token', 'required', 'is required')
  if (body.subject_token_type !== ACCESS_TOKEN) throw invalid('body.subject_token_type', 'enum', `must be ${ACCESS_TOKEN}`)
  // To leave out who acts would make a token that says less than it was asked to.
  if (body.actor_token) throw invalid('body.actor_token', 'not', 'is not supported: a key is nobody but its Mecha')
  const issuedType = body.requested_token_type || ACCESS_TOKEN
  if (issuedType !== ACCESS_TOKEN && issuedType !== JWT) throw invalid('body.requested_token_type', 'enum', `must be ${ACCESS_TOKEN} or ${JWT}`)
  return { subjectToken: body.subject_token, issuedType, audience: audienceOf(listed(body.audience), listed(body.resource)) }
}

/** One as text, several as a list, none as `undefined`. */
function audienceOf(audiences: string[], resources: string[]): string | string[] | undefined {
  if (!audiences.every((one) => /^[\x21-\x7e]{1,256}$/.test(one))) throw invalidTarget('An audience has 1 to 256 printable ASCII characters without spaces.')
  if (!resources.every(isResource)) throw invalidTarget('A resource is an absolute URI of 256 characters at most, without a fragment.')
  const all = [...new Set([...audiences, ...resources])]
  if (all.length > MAX_AUDIENCES) throw invalidTarget(`A token has ${MAX_AUDIENCES} audiences and resources at most.`)
  return all.length > 1 ? all : all[0]
}

/** RFC 8707, section 2. */
function isResource(text: string): boolean {
  return /^[\x21-\x7e]{1,256}$/.test(text) && URL.canParse(text) && !text.includes('#')
}

/** Scopes that are asked for, all of which the key has to have; all of the key's where none are asked for. */
function grantedScopes({ scopes }: CachedKey, asked: string | undefined): readonly string[] {
  const wanted = [...new Set((asked ?? '').split(' ').filter(Boolean))]
  if (wanted.length === 0) return scopes
  if (!wanted.every((one) => scopes.includes(one))) throw new Problem('invalid_scope', 'The key does not have all of these scopes.')
  return wanted
}

function listed(value: string | string[] | undefined): string[] {
  return [value ?? []].flat().filter(Boolean)
}

function invalidSubject(): Problem {
  return new Problem('invalid_subject_token', 'The subject token is not a valid key.')
}

function invalidTarget(detail: string): Problem {
  return new Problem('invalid_target', detail)
}
