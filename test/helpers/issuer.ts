/** A real OpenID Connect issuer on the loopback: discovery, a key set that rotates, and every way to be out of order. */

import { once } from 'node:events'
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http'
import type { AddressInfo } from 'node:net'
import { exportJWK, generateKeyPair, SignJWT, type CryptoKey, type JWK } from 'jose'
import type { Test } from 'tap'

/** How a document is served: `down` resets connections, `hanging` never answers. */
export type Behaviour = 'up' | 'down' | 'hanging' | 'error' | 'not_json' | 'wrong' | 'truncated'
export type Document = 'discovery' | 'jwks'
export type Algorithm = 'RS256' | 'PS256' | 'ES256' | 'ES384' | 'EdDSA'

/** Claims as a test wants them, right or wrong. */
export type Claims = Record<string, unknown>

export interface SigningKey {
  readonly kid: string
  readonly alg: Algorithm
  readonly privateKey: CryptoKey
  readonly jwk: JWK
}

export interface Issuer {
  readonly url: string
  /** How often each document has been asked for. */
  readonly requests: Record<Document, number>
  readonly behaviour: Record<Document, Behaviour>
  /** Overrides members of the discovery document. */
  readonly discovery: Record<string, unknown>
  /** The keys of the set, newest first. */
  readonly keys: SigningKey[]
  /** Signs with the newest key, as an operator of `acme` with the scope `keys:read`, unless said otherwise. `undefined` leaves a claim out. */
  token(claims?: Claims, key?: SigningKey): Promise<string>
}

/** What the issuer says of its operators unless a test says otherwise. */
export function claimsOf(issuer: string): Claims {
  const now = Math.floor(Date.now() / 1000)
  return { iss: issuer, aud: 'mecha-keys', sub: 'olivia', iat: now, exp: now + 600, org_id: 'acme', scope: 'keys:read' }
}

export async function makeKey(alg: Algorithm = 'ES256', kid = `key-${++made}`): Promise<SigningKey> {
  const { privateKey, publicKey } = await generateKeyPair(alg, { extractable: true })
  return { kid, alg, privateKey, jwk: { ...(await exportJWK(publicKey)), kid, alg, use: 'sig' } }
}

export function sign(claims: Claims, { alg, kid, privateKey }: SigningKey, header: object = {}): Promise<string> {
  return new SignJWT(claims).setProtectedHeader({ alg, kid, ...header }).sign(privateKey)
}

export async function startIssuer(t: Test, keys?: SigningKey[]): Promise<Issuer> {
  const server = createServer((request, response) => answer(issuer, request, response))
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  t.teardown(() => {
    server.close()
    server.closeAllConnections()
  })
  const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}`
  const issuer: Issuer = {
    url,
    requests: { discovery: 0, jwks: 0 },
    behaviour: { discovery: 'up', jwks: 'up' },
    discovery: {},
    keys: keys ?? [await makeKey()],
    token: (claims, key = issuer.keys[0]!) => sign({ ...claimsOf(url), ...claims }, key),
  }
  return issuer
}

let made = 0

function answer({ url, requests, behaviour, discovery, keys }: Issuer, request: IncomingMessage, response: ServerResponse): void {
  const documents: Record<string, { name: Document; right: object; wrong: object }> = {
    '/.well-known/openid-configuration': {
      name: 'discovery',
      right: { issuer: url, jwks_uri: `${url}/jwks`, ...discovery },
      wrong: { issuer: `${url}/somebody-else`, jwks_uri: `${url}/jwks` },
    },
    '/jwks': { name: 'jwks', right: { keys: keys.map(({ jwk }) => jwk) }, wrong: { keys: 'none' } },
  }
  const document = documents[request.url ?? '']
  if (!document) return void response.writeHead(404).end()
  requests[document.name]++
  const right = JSON.stringify(document.right)
  switch (behaviour[document.name]) {
    case 'up': return void response.setHeader('content-type', 'application/json').end(right)
    case 'wrong': return void response.setHeader('content-type', 'application/json').end(JSON.stringify(document.wrong))
    case 'not_json': return void response.setHeader('content-type', 'text/html').end('<h1>Back in a minute</h1>')
    case 'error': return void response.writeHead(500).end(right)
    case 'truncated': return void response.writeHead(200, { 'content-length': right.length }).write(right.slice(0, 10), () => response.destroy())
    case 'down': return void request.socket.destroy()
    case 'hanging': return
  }
}
