/** Who is calling the runtime plane: a gateway, by the credential that the control plane issued it. */

import { Problem } from '../errors.js'

/** An authenticated gateway. */
export interface Gateway {
  readonly id: string
  /** The organization whose keys it may verify, or `null` for all. */
  readonly orgId: string | null
}

/** Resolves a presented credential to its gateway, or to `undefined` when it is not a valid one. */
export type GatewayVerifier = (credential: string) => Promise<Gateway | undefined>

/**
 * Reads the `Authorization` header of a gateway's request.
 *
 * @throws Problem `unauthenticated` (401)
 */
export async function authenticateGateway(authorization: string | undefined, verify: GatewayVerifier): Promise<Gateway> {
  const credential = /^Bearer +(\S+)$/i.exec(authorization ?? '')?.[1]
  const gateway = credential && (await verify(credential))
  if (gateway) return gateway
  const challenge = `Bearer realm="mecha-keys"${credential ? ', error="invalid_token"' : ''}`
  throw new Problem('unauthenticated', 'Send a gateway credential: Authorization: Bearer <credential>.', {
    headers: { 'www-authenticate': challenge },
  })
}
