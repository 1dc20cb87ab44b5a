/** Who is calling the control plane: an operator, by a bearer JWT of an issuer that this service trusts. */

import { decodeJwt, errors as joseErrors, jwtVerify, type JWTPayload, type JWTVerifyGetKey } from 'jose'
import { mediaTypeOf, type Settings } from '../../config.js'
import { Problem } from '../../errors.js'
import { challenge } from '../../http/challenge.js'
import { bearerToken } from '../../protocol/bearer.js'
import { CREW } from '../../credentials/handle.js'
import { BUILTIN_ISSUER, builtinIssuer } from './builtin-issuer.js'
import type { Issuer } from './issuer.js'
import { issuerUnavailable, oidcIssuer } from './oidc-issuer.js'
import { ProvedTokens } from './proved-tokens.js'
import { SCOPES } from './scopes.js'

/** An authenticated operator, and what their token lets them do. */
export interface Operator {
  /** `sub` of the token, behind which issuer vouches for it: what the audit trail names. Two issuers may know an alice each. */
  readonly actor: string
  readonly orgId: string
  readonly scopes: ReadonlySet<string>
  /** The crews that the token is narrowed to, or `undefined` for all. An empty list is no crew at all. */
  readonly crews: readonly string[] | undefined
}

export type OperatorAuthenticator = (authorization: string | undefined) => Promise<Operator>

/** What the audit trail can store and show (OpenID Connect Core 1.0, section 2: 255 characters at most). */
const SUBJECT = /^[^\p{Cc}\p{Cs}]{1,255}$/u
/** The characters that RFC 6750, section 2.1, lets a token have. What has others is told that it is no token, and not that nobody issued it. */
const B64TOKEN = /^[A-Za-z0-9._~+/=-]+$/
const ORG_ID = /^[\x21-\x7e]{1,128}$/

/**
 * Builds the check of operator tokens (RFC 8725: algorithms and type pinned, issuer and audience checked, `exp` demanded).
 *
 * @returns a function that resolves to the operator, or throws `unauthenticated` (401) or `issuer_unavailable` (503)
 */
export async function operatorAuthenticator(config: Settings): Promise<OperatorAuthenticator> {
  const issuers = await trustedIssuers(config)
  const proved = new ProvedTokens<Operator>(config.OIDC_JWKS_MAX_AGE * 1000)
  return async (authorization) => {
    const token = bearerToken(authorization ?? '')
    if (token === undefined || !B64TOKEN.test(token)) throw unauthenticated('Send an operator token: Authorization: Bearer <JWT>.')
    const known = proved.find(token)
    if (known) return known
    const issuer = issuers.get(claimedIssuer(token))
    if (!issuer) throw unauthenticated('The token is of no issuer that is trusted here.', 'invalid_token')
    const claims = await verifiedClaims(token, issuer, config)
    const operator = operatorOf(claims, config)
    proved.keep(token, operator, (claims.exp! + config.OIDC_CLOCK_TOLERANCE) * 1000)
    return operator
  }
}

async function trustedIssuers(config: Settings): Promise<Map<string, Issuer>> {
  const issuers = new Map<string, Issuer>()
  if (config.BUILTIN_ISSUER === 'on' && config.BUILTIN_ISSUER_KEY) issuers.set(BUILTIN_ISSUER, await builtinIssuer(config.BUILTIN_ISSUER_KEY))
  if (config.OIDC_ISSUER) issuers.set(config.OIDC_ISSUER, oidcIssuer(config.OIDC_ISSUER, config))
  return issuers
}

function claimedIssuer(token: string): string {
  try {
    return decodeJwt(token).iss ?? ''
  } catch {
    return ''
  }
}

async function verifiedClaims(token: string, issuer: Issuer, config: Settings): Promise<JWTPayload> {
  const options = {
    issuer: issuer.issuer,
    audience: config.OIDC_AUDIENCE,
    algorithms: [...issuer.algorithms],
    clockTolerance: config.OIDC_CLOCK_TOLERANCE,
    requiredClaims: ['exp', 'sub'],
  }
  try {
    // The two overloads of jwtVerify take the same arguments here.
    const { payload, protectedHeader } = await jwtVerify(token, issuer.key as JWTVerifyGetKey, options)
    const { typ } = protectedHeader
    if (issuer.types && !issuer.types.includes(typ === undefined ? undefined : mediaTypeOf(String(typ))))
      throw unauthenticated('The type of the token (typ) is not one that is taken here. Send an access token, and not an ID token.', 'invalid_token')
    return payload
  } catch (error) {
    if (error instanceof Problem) throw error
    if (isAboutKeySet(error)) throw issuerUnavailable()
    if (error instanceof joseErrors.JWTExpired) throw unauthenticated('The token has expired.', 'invalid_token')
    if (error instanceof joseErrors.JWTClaimValidationFailed)
      throw unauthenticated(`The token's claim ${error.claim} is not as it must be.`, 'invalid_token')
    throw unauthenticated('The token is not valid.', 'invalid_token')
  }
}

/** What is wrong with a token has an error class of its own; jose's general one is for a key set that is not JSON. */
function isAboutKeySet(error: unknown): boolean {
  if (error instanceof joseErrors.JWKSTimeout || error instanceof joseErrors.JWKSInvalid) return true
  return error instanceof joseErrors.JOSEError && error.code === joseErrors.JOSEError.code
}

function operatorOf(claims: JWTPayload, config: Settings): Operator {
  const subject: unknown = claims.sub
  if (typeof subject !== 'string' || !SUBJECT.test(subject)) throw wrongClaim('sub')
  const orgId = claims[config.OIDC_ORG_CLAIM]
  if (typeof orgId !== 'string' || !ORG_ID.test(orgId)) throw wrongClaim(config.OIDC_ORG_CLAIM)
  const scope = claims[config.OIDC_SCOPE_CLAIM] ?? ''
  const scopes = typeof scope === 'string' ? scope.split(' ') : scope
  if (!isListOfText(scopes)) throw wrongClaim(config.OIDC_SCOPE_CLAIM)
  const crews = claims[config.OIDC_CREWS_CLAIM]
  if (crews !== undefined && !(isListOfText(crews) && crews.every((crew) => CREW.test(crew)))) throw wrongClaim(config.OIDC_CREWS_CLAIM)
  const known = new Set<string>(SCOPES)
  return {
    actor: `${claims.iss === BUILTIN_ISSUER ? 'builtin' : 'operator'}:${subject}`,
    orgId,
    scopes: new Set(scopes.filter((one) => known.has(one))),
    crews,
  }
}

function isListOfText(value: unknown): value is string[] {
  return Array.isArray(value) && value.every((item) => typeof item === 'string')
}

function unauthenticated(detail: string, error?: 'invalid_token'): Problem {
  return new Problem('unauthenticated', detail, { headers: { 'www-authenticate': challenge(error && { error }) } })
}

function wrongClaim(claim: string): Problem {
  return unauthenticated(`The token's claim ${claim} is not as it must be.`, 'invalid_token')
}
