/** Who is calling the control plane: an operator, by a bearer JWT of an issuer that this service trusts. */

import { createPublicKey } from 'node:crypto'
import {
  createRemoteJWKSet,
  customFetch,
  decodeJwt,
  errors as joseErrors,
  importPKCS8,
  jwtVerify,
  SignJWT,
  type JWTPayload,
  type JWTVerifyGetKey,
} from 'jose'
import { isFetchable, mediaTypeOf, type Settings } from '../../config.js'
import { ConfigError, Problem } from '../../errors.js'
import { challenge } from '../../http/challenge.js'
import { bearerToken } from '../../protocol/bearer.js'
import { CREW } from '../../credentials/handle.js'
import { ProvedTokens } from './proved-tokens.js'
import { SCOPES, type Scope } from './scopes.js'

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

/** How the built-in issuer names itself in its tokens. */
const BUILTIN_ISSUER = 'mecha-keys:builtin'
const FETCH_TIMEOUT_MS = 5000
/** What the audit trail can store and show (OpenID Connect Core 1.0, section 2: 255 characters at most). */
const SUBJECT = /^[^\p{Cc}\p{Cs}]{1,255}$/u
/** The characters that RFC 6750, section 2.1, lets a token have. What has others is told that it is no token, and not that nobody issued it. */
const B64TOKEN = /^[A-Za-z0-9._~+/=-]+$/
const ORG_ID = /^[\x21-\x7e]{1,128}$/

interface Issuer {
  readonly issuer: string
  readonly algorithms: readonly string[]
  /** Media types of the tokens that are taken, `undefined` being one that names none; every type where it is not there. */
  readonly types?: readonly (string | undefined)[]
  readonly key: JWTVerifyGetKey | CryptoKeyLike
}
type CryptoKeyLike = Awaited<ReturnType<typeof importPKCS8>>

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

/** Signs an operator token with the built-in issuer's key. */
export async function signOperatorToken(
  config: Settings,
  claims: { org: string; scopes: readonly Scope[]; crews?: readonly string[]; subject: string; ttlSeconds: number },
): Promise<string> {
  if (!config.BUILTIN_ISSUER_KEY) throw new ConfigError('the built-in issuer has no key: set BUILTIN_ISSUER_KEY or BUILTIN_ISSUER_KEY_FILE')
  const payload = {
    [config.OIDC_ORG_CLAIM]: claims.org,
    [config.OIDC_SCOPE_CLAIM]: claims.scopes.join(' '),
    ...(claims.crews && { [config.OIDC_CREWS_CLAIM]: claims.crews }),
  }
  return new SignJWT(payload)
    .setProtectedHeader({ alg: 'EdDSA', typ: 'JWT' })
    .setIssuer(BUILTIN_ISSUER)
    .setAudience(config.OIDC_AUDIENCE)
    .setSubject(claims.subject)
    .setIssuedAt()
    .setExpirationTime(Math.floor(Date.now() / 1000) + claims.ttlSeconds)
    .sign(await builtinPrivateKey(config.BUILTIN_ISSUER_KEY))
}

async function trustedIssuers(config: Settings): Promise<Map<string, Issuer>> {
  const issuers = new Map<string, Issuer>()
  if (config.BUILTIN_ISSUER === 'on' && config.BUILTIN_ISSUER_KEY) {
    await builtinPrivateKey(config.BUILTIN_ISSUER_KEY)
    const key = createPublicKey(config.BUILTIN_ISSUER_KEY)
    issuers.set(BUILTIN_ISSUER, { issuer: BUILTIN_ISSUER, algorithms: ['EdDSA'], key: key as unknown as CryptoKeyLike })
  }
  if (config.OIDC_ISSUER) {
    const issuer = config.OIDC_ISSUER
    issuers.set(issuer, { issuer, algorithms: config.OIDC_ALGORITHMS, types: config.OIDC_TOKEN_TYPES, key: remoteKeys(issuer, config) })
  }
  return issuers
}

/** The key set's address is looked up once (OpenID Connect Discovery 1.0, section 4), and again until that works. */
function remoteKeys(issuer: string, config: Settings): JWTVerifyGetKey {
  let keys: Promise<JWTVerifyGetKey> | undefined
  /** When they were last asked for, on both clocks. */
  let fetched = { at: Infinity, wall: -Infinity }
  const options = {
    timeoutDuration: FETCH_TIMEOUT_MS,
    cooldownDuration: config.OIDC_JWKS_COOLDOWN * 1000,
    cacheMaxAge: config.OIDC_JWKS_MAX_AGE * 1000,
    async [customFetch](url: string, init: RequestInit) {
      const asked = { at: performance.now(), wall: Date.now() }
      const response = await fetchOrUnavailable(url, init)
      fetched = asked
      return response
    },
  }
  const find = async () => createRemoteJWKSet(new URL(config.OIDC_JWKS_URL ?? (await discoverJwksUrl(issuer))), options)
  return async (header, token) => {
    // Their age is counted by the wall clock alone. Where that was set back, a key that was withdrawn would count for that
    // much longer, and a new one would not be looked for.
    if (performance.now() - fetched.at > options.cacheMaxAge || Date.now() < fetched.wall) {
      keys = undefined
      fetched = { at: Infinity, wall: -Infinity }
    }
    // Requests that come while it is looked up wait for the same answer: they cannot pile up on a slow issuer.
    keys ??= find().catch((error: unknown) => {
      keys = undefined
      throw error
    })
    return (await keys)(header, token)
  }
}

async function discoverJwksUrl(issuer: string): Promise<string> {
  const found = await discover(issuer)
  if (found.issuer !== issuer || typeof found.jwks_uri !== 'string' || !isFetchable(found.jwks_uri)) throw issuerUnavailable()
  return found.jwks_uri
}

async function discover(issuer: string): Promise<{ issuer?: unknown; jwks_uri?: unknown }> {
  const url = `${issuer.replace(/\/$/, '')}/.well-known/openid-configuration`
  const response = await fetchOrUnavailable(url, { redirect: 'error', signal: AbortSignal.timeout(FETCH_TIMEOUT_MS) })
  return ((await response.json().catch(() => undefined)) as object | null | undefined) ?? {}
}

/**
 * Says that the issuer calls itself by another name than `OIDC_ISSUER`, so that no token of its own could be accepted.
 * Its document is not asked for where its keys are at `OIDC_JWKS_URL`.
 *
 * @throws Problem `issuer_unavailable` where nobody can say so now
 */
export async function issuerMistake({ OIDC_ISSUER: issuer, OIDC_JWKS_URL: jwksUrl }: Settings): Promise<string | undefined> {
  if (!issuer || jwksUrl) return undefined
  const found = await discover(issuer)
  if (found.issuer === issuer) return undefined
  return `OIDC_ISSUER is ${issuer}, but the issuer there calls itself ${String(JSON.stringify(found.issuer)).slice(0, 200)}: set it to what the tokens have as iss`
}

/** An issuer that is down is not a token that is wrong. */
async function fetchOrUnavailable(url: string, options: RequestInit): Promise<Response> {
  const response = await fetch(url, options).catch(() => undefined)
  if (!response || response.status !== 200) throw issuerUnavailable()
  return response
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

async function builtinPrivateKey(pem: string): Promise<CryptoKeyLike> {
  try {
    return await importPKCS8(pem, 'EdDSA')
  } catch {
    throw new ConfigError('BUILTIN_ISSUER_KEY must be an Ed25519 private key, PKCS #8 in PEM')
  }
}

function unauthenticated(detail: string, error?: 'invalid_token'): Problem {
  return new Problem('unauthenticated', detail, { headers: { 'www-authenticate': challenge(error && { error }) } })
}

function wrongClaim(claim: string): Problem {
  return unauthenticated(`The token's claim ${claim} is not as it must be.`, 'invalid_token')
}

function issuerUnavailable(): Problem {
  return new Problem('issuer_unavailable', 'Operator tokens cannot be checked just now.', { headers: { 'retry-after': '5' } })
}
