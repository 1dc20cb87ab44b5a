/** Authenticates gateways by the credentials that the control plane issued them. */

import { Problem } from '../../errors.js'
import { challenge } from '../../http/challenge.js'
import { bearerToken } from '../../protocol/bearer.js'
import { publicId } from '../../credentials/id.js'

/** An authenticated gateway. */
export interface Gateway {
  readonly id: string
  /** The organization whose keys it may verify, or `null` for all. */
  readonly org_id: string | null
  /** In milliseconds. */
  readonly expires_at: number | null
}

/** Resolves a presented credential to its gateway, or to `undefined` when it is not a valid one. */
export type GatewayVerifier = (credential: string) => Gateway | undefined | Promise<Gateway | undefined>

/**
 * Reads the `Authorization` header of a gateway's request.
 *
 * @throws Problem `unauthenticated` (401)
 */
export function authenticateGateway(authorization: string | undefined, verify: GatewayVerifier): Gateway | Promise<Gateway> {
  const credential = bearerToken(authorization ?? '')
  const gateway = credential === undefined ? undefined : verify(credential)
  if (gateway instanceof Promise) return gateway.then((found) => found ?? refuse(credential))
  return gateway ?? refuse(credential)
}

/**
 * The same for a gateway that is an OAuth client: by bearer, or by HTTP Basic with its id as user name and its credential
 * as password, both form-encoded (RFC 6749, section 2.3.1).
 *
 * @throws Problem `unauthenticated` (401)
 */
export async function authenticateClient(authorization: string | undefined, verify: GatewayVerifier): Promise<Gateway> {
  const basic = basicOf(authorization ?? '')
  const credential = basic ? basic.password : bearerToken(authorization ?? '')
  const gateway = credential ? await verify(credential) : undefined
  if (!gateway || (basic && basic.user !== publicId('gateway', gateway.id))) throw notAClient(credential)
  return gateway
}

function basicOf(authorization: string): { user: string; password: string } | undefined {
  const encoded = /^Basic +([A-Za-z0-9+/_-]+=*)$/i.exec(authorization)?.[1]
  const parts = encoded === undefined ? undefined : /^([^:]*):(.*)$/s.exec(Buffer.from(encoded, 'base64').toString())
  return parts ? { user: formDecoded(parts[1]!), password: formDecoded(parts[2]!) } : undefined
}

/** The text without its form encoding; empty where that is broken, which matches nothing that was issued here. */
function formDecoded(text: string): string {
  try {
    return decodeURIComponent(text.replaceAll('+', ' '))
  } catch {
    return ''
  }
}

function challengeTo(credential: string | undefined): string {
  return challenge(credential ? { error: 'invalid_token' } : undefined)
}

function notAClient(credential: string | undefined): Problem {
  return new Problem('unauthenticated', 'Send a gateway credential: as bearer, or by HTTP Basic with the id of the credential as user name.', {
    headers: { 'www-authenticate': `${challengeTo(credential)}, Basic realm="mecha-keys", charset="UTF-8"` },
  })
}

function refuse(credential: string | undefined): never {
  throw new Problem('unauthenticated', 'Send a gateway credential: Authorization: Bearer <credential>.', {
    headers: { 'www-authenticate': challengeTo(credential) },
  })
}
