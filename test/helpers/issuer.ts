/** A real OIDC issuer on the loopback: discovery, a key set that can be rotated, and everything that can go wrong with it. */

import { once } from 'node:events'
import { createServer, type ServerResponse } from 'node:http'
import type { AddressInfo } from 'node:net'
import { exportJWK, generateKeyPair, SignJWT, type CryptoKey, type JWTPayload } from 'jose'
import type { Test } from 'tap'

export type Algorithm = 'RS256' | 'ES256' | 'EdDSA' | 'PS384'

export interface SigningKey {
  readonly kid: string
  readonly alg: Algorithm
  readonly privateKey: CryptoKey
  readonly publicKey: CryptoKey
}

export interface Issuer {
  readonly url: string
  /** How often the key set was fetched. */
  readonly fetches: () => number
  /** The keys that are published. */
  keys: SigningKey[]
  /** What is answered instead of what should be. */
  fault: undefined | 'status 500' | 'not JSON' | 'another issuer' | 'no answer'
  /** Takes the listener away, and gives it back on the same port. */
  down(): Promise<void>
  up(): Promise<void>
}

export async function makeKey(kid: string, alg: Algorithm = 'ES256'): Promise<SigningKey> {
  return { kid, alg, ...(await generateKeyPair(alg, { extractable: true })) }
}

export async function startIssuer(t: Test, keys: SigningKey[]): Promise<Issuer> {
  let fetches = 0
  const server = createServer((request, response) => void answer(request.url ?? '', response))
  const listen = async (port: number) => {
    server.listen(port, '127.0.0.1')
    await once(server, 'listening')
  }
  await listen(0)
  const { port } = server.address() as AddressInfo
  const issuer: Issuer = {
    url: `http://127.0.0.1:${port}`,
    fetches: () => fetches,
    keys,
    fault: undefined,
    async down() {
      server.close()
      server.closeAllConnections()
      await once(server, 'close')
    },
    up: () => listen(port),
  }
  t.teardown(() => {
    server.close()
    server.closeAllConnections()
  })
  return issuer

  async function answer(path: string, response: ServerResponse): Promise<void> {
    if (issuer.fault === 'no answer') return
    if (issuer.fault === 'status 500') return void response.writeHead(500).end('{}')
    if (issuer.fault === 'not JSON') return void response.end('<html>')
    response.setHeader('content-type', 'application/json')
    if (path === '/.well-known/openid-configuration')
      return void response.end(JSON.stringify({ issuer: issuer.fault ? 'https://elsewhere.example.com' : issuer.url, jwks_uri: `${issuer.url}/jwks` }))
    fetches++
    const published = issuer.keys.map(async ({ kid, alg, publicKey }) => ({ ...(await exportJWK(publicKey)), kid, alg, use: 'sig' }))
    response.end(JSON.stringify({ keys: await Promise.all(published) }))
  }
}

/** A token of the issuer's, good unless told otherwise. `undefined` leaves a claim out. */
export async function tokenOf(issuer: Issuer, key: SigningKey, claims: JWTPayload = {}, header: object = {}): Promise<string> {
  const now = Math.floor(Date.now() / 1000)
  const whole = { iss: issuer.url, aud: 'mecha-keys', sub: 'carol', iat: now, exp: now + 600, org_id: 'acme', scope: 'openid keys:issue keys:read', ...claims }
  const given = Object.fromEntries(Object.entries(whole).filter(([, value]) => value !== undefined))
  return new SignJWT(given).setProtectedHeader({ alg: key.alg, kid: key.kid, ...header }).sign(key.privateKey)
}
