/** The OpenID Connect issuer at `OIDC_ISSUER`: finding its keys, and fetching them again. */

import { createRemoteJWKSet, customFetch, type JWTVerifyGetKey } from 'jose'
import { isFetchable, type Settings } from '../../config.js'
import { Problem } from '../../errors.js'
import type { Issuer } from './issuer.js'

const FETCH_TIMEOUT_MS = 5000

/** How its tokens are checked. */
export function oidcIssuer(issuer: string, config: Settings): Issuer {
  return { issuer, algorithms: config.OIDC_ALGORITHMS, types: config.OIDC_TOKEN_TYPES, key: remoteKeys(issuer, config) }
}

/**
 * Says whether the issuer calls itself by another name than `OIDC_ISSUER`: no token of it could be accepted then. Its document is
 * not fetched where `OIDC_JWKS_URL` says where its keys are.
 *
 * @returns the mistake in words, or `undefined`
 * @throws Problem `issuer_unavailable` while the issuer does not answer
 */
export async function issuerMistake({ OIDC_ISSUER: issuer, OIDC_JWKS_URL: jwksUrl }: Settings): Promise<string | undefined> {
  if (!issuer || jwksUrl) return undefined
  const found = await discover(issuer)
  if (found.issuer === issuer) return undefined
  return `OIDC_ISSUER is ${issuer}, but the issuer there calls itself ${String(JSON.stringify(found.issuer)).slice(0, 200)}: set it to what the tokens have as iss`
}

export function issuerUnavailable(): Problem {
  return new Problem('issuer_unavailable', 'Operator tokens cannot be checked just now.', { headers: { 'retry-after': '5' } })
}

/** The key set's address is looked up once (OpenID Connect Discovery 1.0, section 4), and again until that works. */
function remoteKeys(issuer: string, config: Settings): JWTVerifyGetKey {
  let keys: Promise<JWTVerifyGetKey> | undefined
  /** When the keys were last fetched, on both clocks. */
  let fetched = { at: Infinity, wall: -Infinity }
  const options = {
    timeoutDuration: FETCH_TIMEOUT_MS,
    cooldownDuration: config.OIDC_JWKS_COOLDOWN * 1000,
    cacheMaxAge: config.OIDC_JWKS_MAX_AGE * 1000,
    async [customFetch](url: string, init: RequestInit) {
      const startedAt = { at: performance.now(), wall: Date.now() }
      const response = await fetchOrUnavailable(url, init)
      fetched = startedAt
      return response
    },
  }
  const find = async () => createRemoteJWKSet(new URL(config.OIDC_JWKS_URL ?? (await discoverJwksUrl(issuer))), options)
  return async (header, token) => {
    // jose counts the age of the keys by the wall clock alone. Where that was set back, a key that was withdrawn would be accepted for
    // that much longer, and a new one would not be fetched.
    if (performance.now() - fetched.at > options.cacheMaxAge || Date.now() < fetched.wall) {
      keys = undefined
      fetched = { at: Infinity, wall: -Infinity }
    }
    // Requests that come during the look-up share it, so that they cannot pile up on a slow issuer.
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

/** Fails as an unavailable issuer (503) and not as a wrong token (401): an outage says nothing about a token. */
async function fetchOrUnavailable(url: string, options: RequestInit): Promise<Response> {
  const response = await fetch(url, options).catch(() => undefined)
  if (!response || response.status !== 200) throw issuerUnavailable()
  return response
}
