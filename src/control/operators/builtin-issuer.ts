/** The built-in issuer: operator tokens that are signed with a key of this deployment (`BUILTIN_ISSUER_KEY`). */

import { createPublicKey } from 'node:crypto'
import { importPKCS8, SignJWT } from 'jose'
import type { Settings } from '../../config.js'
import { ConfigError } from '../../errors.js'
import type { CryptoKeyLike, Issuer } from './issuer.js'
import type { Scope } from './scopes.js'

/** How the built-in issuer names itself in its tokens. */
export const BUILTIN_ISSUER = 'mecha-keys:builtin'

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

/** How its tokens are checked. Rejects a key that cannot sign, so that the service does not start with one. */
export async function builtinIssuer(pem: string): Promise<Issuer> {
  await builtinPrivateKey(pem)
  return { issuer: BUILTIN_ISSUER, algorithms: ['EdDSA'], key: createPublicKey(pem) as unknown as CryptoKeyLike }
}

async function builtinPrivateKey(pem: string): Promise<CryptoKeyLike> {
  try {
    return await importPKCS8(pem, 'EdDSA')
  } catch {
    throw new ConfigError('BUILTIN_ISSUER_KEY must be an Ed25519 private key, PKCS #8 in PEM')
  }
}
