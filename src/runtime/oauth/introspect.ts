/** Introspection (RFC 7662) of keys, and of the JWTs that they were exchanged for. */

import type { Static } from 'typebox'
import { errors as joseErrors, jwtVerify, type JWTPayload } from 'jose'
import type { Gateway } from '../gateway-auth/authenticate.js'
import { parseHandle } from '../../credentials/handle.js'
import { parsePublicId, publicId } from '../../credentials/id.js'
import { SIGNING_ALGORITHMS } from '../../credentials/signing-key.js'
import { isJwt } from '../../credentials/token.js'
import type { Caller } from '../gateway-auth/callers.js'
import { signJwt, type SigningKeys } from './keyring.js'
import type { OAuthParts } from './deps.js'
import { ACCESS_TOKEN_TYP, INTROSPECTION_TYP, type ActiveToken, type Introspection } from './schemas.js'

const INACTIVE = { active: false } as const

/**
 * What a gateway is told about a token: everything while it is good, and nothing otherwise (section 2.2). A JWT is good
 * while it is one of ours, has not expired, and the key that it was exchanged for is good.
 */
export function introspect(parts: OAuthParts, token: string, gateway: Gateway, caller: Caller): Promise<Static<typeof Introspection>> {
  return isJwt(token) ? introspectJwt(parts, token, gateway) : introspectKey(parts, token, gateway, caller)
}

/** The same as a JWT for one gateway (RFC 9701, section 5). */
export async function signIntrospection(parts: OAuthParts, introspection: Static<typeof Introspection>, gateway: Gateway): Promise<string> {
  const { now, signer } = await parts.keyring.keys()
  const claims = { iss: parts.issuer(), aud: publicId('gateway', gateway.id), iat: Math.floor(now / 1000), token_introspection: introspection }
  return signJwt(signer, INTROSPECTION_TYP, claims)
}

async function introspectKey({ verifier, issuer }: OAuthParts, token: string, gateway: Gateway, caller: Caller): Promise<Static<typeof Introspection>> {
  const key = await verifier.verifyKey(token, gateway, {}, caller)
  if (typeof key === 'string') return INACTIVE
  const id = publicId('mecha', key.id)
  return {
    active: true,
    ...whose(key.mecha!),
    ...(key.scopes.length > 0 && { scope: key.scopes.join(' ') }),
    token_type: 'Bearer',
    ...(key.expires_at !== null && { exp: Math.floor(key.expires_at / 1000) }),
    iat: Math.floor(key.created_at / 1000),
    iss: issuer(),
    jti: id,
    org_id: key.org_id!,
    key_id: id,
  }
}

async function introspectJwt(parts: OAuthParts, token: string, gateway: Gateway): Promise<Static<typeof Introspection>> {
  const claims = await verifiedClaims(token, parts.issuer(), await parts.keyring.keys())
  const id = claims && parsePublicId('mecha', claims.key_id)
  if (!id || !(await parts.verifier.isGood(id, gateway))) return INACTIVE
  const { sub, scope, exp, iat, iss, jti, aud, org_id, key_id } = claims
  return { active: true, ...whose(sub), ...(scope !== undefined && { scope }), token_type: 'Bearer', exp, iat, iss, jti, aud, org_id, key_id }
}

function whose(mecha: string): Pick<Static<typeof ActiveToken>, 'sub' | 'client_id' | 'username' | 'crew'> {
  const { handle, crew } = parseHandle(mecha)
  return { sub: handle, client_id: handle, username: handle, crew }
}

/** What an exchange puts into a JWT. */
interface Claims extends Required<Pick<JWTPayload, 'sub' | 'exp' | 'iat' | 'iss' | 'jti' | 'aud'>> {
  readonly org_id: string
  readonly key_id: string
  readonly scope?: string
}

/** The claims of a JWT that was signed here and has not expired. What is signed here as an access token has all of them. */
async function verifiedClaims(token: string, issuer: string, { published, now }: SigningKeys): Promise<Claims | undefined> {
  const keyOf = ({ kid }: { kid?: string }) => {
    const key = published.find((one) => one.kid === kid)
    if (!key) throw new joseErrors.JWKSNoMatchingKey()
    return key.publicKey
  }
  const options = { issuer, typ: ACCESS_TOKEN_TYP, algorithms: [...SIGNING_ALGORITHMS], currentDate: new Date(now), requiredClaims: ['exp', 'key_id'] }
  try {
    const { payload } = await jwtVerify(token, keyOf, options)
    return payload as unknown as Claims
  } catch (error) {
    if (error instanceof joseErrors.JOSEError) return undefined
    throw error
  }
}
