/** The OAuth side as clients see it that know nothing of this service: openid-client, and jose alone. `independent.long.test.ts` has Authlib. */

import { createRemoteJWKSet, decodeProtectedHeader, jwtVerify } from 'jose'
import * as oidc from 'openid-client'
import t, { type Test } from 'tap'
import { parsePublicId, publicId } from '../../../src/credentials/id.js'
import { ACCESS_TOKEN, EXCHANGE, listen } from '../../helpers/oauth.js'
import { startService, type Identity } from '../../helpers/service.js'

/** A service on a free port, with its issuer as it follows from that. */
async function served(t: Test) {
  const service = await startService(t, { HOST: '127.0.0.1', PORT: '0' })
  const issuer = await listen(service)
  return { service, issuer }
}

const options: oidc.DiscoveryRequestOptions = { algorithm: 'oauth2', execute: [oidc.allowInsecureRequests] }

/** A gateway as an OAuth client. */
async function gatewayClient(service: Awaited<ReturnType<typeof served>>['service'], issuer: string, metadata: Partial<oidc.ClientMetadata> = {}, identity: Identity = {}) {
  const { body } = await service.call('POST', '/v1/gateways', { token: await service.token(identity), body: { name: 'edge' } })
  return oidc.discovery(new URL(issuer), body.gateway.id, metadata, oidc.ClientSecretBasic(body.plaintext_key), options)
}

t.test('openid-client discovers the service, exchanges a key and introspects it', async (t) => {
  const { service, issuer } = await served(t)
  const { key, plaintext_key } = await service.issue({ scopes: ['orders:read', 'orders:write'], expires_in: 3600 })

  const runtime = await oidc.discovery(new URL(issuer), 'any-name', undefined, oidc.None(), options)
  t.match(runtime.serverMetadata(), { issuer, token_endpoint: `${issuer}/v1/token`, revocation_endpoint: `${issuer}/v1/revoke-token` })
  const answer = await oidc.genericGrantRequest(runtime, EXCHANGE, {
    subject_token: plaintext_key, subject_token_type: ACCESS_TOKEN, scope: 'orders:read', audience: 'https://edge.example.com',
  })
  t.match(answer, { token_type: 'bearer', expires_in: 300, scope: 'orders:read', issued_token_type: ACCESS_TOKEN })

  const gateway = await gatewayClient(service, issuer)
  const whose = { active: true, sub: 'sales^acmecorp', client_id: 'sales^acmecorp', username: 'sales^acmecorp', crew: 'acmecorp', org_id: 'acme', iss: issuer, key_id: key.id, token_type: 'Bearer' }
  t.same(await oidc.tokenIntrospection(gateway, plaintext_key), {
    ...whose, scope: 'orders:read orders:write', jti: key.id,
    iat: Math.floor(Date.parse(key.created_at) / 1000), exp: Math.floor(Date.parse(key.expires_at) / 1000),
  })
  const ofJwt = await oidc.tokenIntrospection(gateway, answer.access_token, { token_type_hint: 'access_token' })
  t.match(ofJwt, { ...whose, scope: 'orders:read', aud: 'https://edge.example.com' })
  t.equal(ofJwt.exp! - ofJwt.iat!, 300)
  t.not(ofJwt.jti, key.id)

  await service.call('POST', `/v1/keys/${key.id}/revoke`, { token: await service.token() })
  for (const token of [plaintext_key, answer.access_token]) t.same(await oidc.tokenIntrospection(gateway, token), { active: false })
  await t.rejects(oidc.genericGrantRequest(runtime, EXCHANGE, { subject_token: plaintext_key, subject_token_type: ACCESS_TOKEN }), {
    name: 'ResponseBodyError', status: 400, error: 'invalid_request',
  })
})

t.test('the metadata are as RFC 8414 has them', async (t) => {
  const service = await startService(t, { PUBLIC_URL: 'https://keys.example.com' })
  const { body } = await service.call('GET', '/.well-known/oauth-authorization-server')
  for (const required of ['issuer', 'token_endpoint', 'response_types_supported']) t.ok(required in body, `${required} is required (section 2)`)
  for (const [name, value] of Object.entries(body)) if (Array.isArray(value)) t.not(value.length, 0, `${name}: what has no elements is left out (section 3.2)`)
  t.same(body.response_types_supported, ['none'], 'a registered response type: nothing comes from an authorization endpoint')
  t.notOk('authorization_endpoint' in body)
  t.same(body.token_endpoint_auth_methods_supported, ['none'])
})

t.test('openid-client ends a key that it holds, and what the key was exchanged for', async (t) => {
  const { service, issuer } = await served(t)
  const { plaintext_key } = await service.issue()
  const runtime = await oidc.discovery(new URL(issuer), 'any-name', undefined, oidc.None(), options)
  const { access_token } = await oidc.genericGrantRequest(runtime, EXCHANGE, { subject_token: plaintext_key, subject_token_type: ACCESS_TOKEN })
  await t.rejects(oidc.tokenRevocation(runtime, access_token), { name: 'ResponseBodyError', status: 400, error: 'unsupported_token_type' }, 'the JWT alone it cannot end')
  await oidc.tokenRevocation(runtime, plaintext_key, { token_type_hint: 'access_token' })
  const gateway = await gatewayClient(service, issuer)
  for (const token of [plaintext_key, access_token]) t.same(await oidc.tokenIntrospection(gateway, token), { active: false })
})

t.test('openid-client finds a service whose address has a path, behind a proxy that takes the path away', async (t) => {
  const service = await startService(t, { PUBLIC_URL: 'https://example.com/mecha/' })
  const { body } = await service.call('POST', '/v1/gateways', { token: await service.token(), body: { name: 'edge' } })
  const asked: string[] = []
  const proxy: oidc.CustomFetch = async (url, { method, headers, body }) => {
    asked.push(url)
    const path = url.replace('https://example.com', '').replace(/^\/mecha\//, '/')
    const answer = await service.call(method as 'GET', path, { headers, ...(body && { body: String(body as URLSearchParams) }) })
    return new Response(answer.text, { status: answer.status, headers: { 'content-type': String(answer.headers['content-type']) } })
  }
  const found = await oidc.discovery(new URL('https://example.com/mecha'), body.gateway.id, { introspection_signed_response_alg: 'EdDSA' }, oidc.ClientSecretBasic(body.plaintext_key), {
    algorithm: 'oauth2', [oidc.customFetch]: proxy,
  })
  oidc.enableNonRepudiationChecks(found)
  t.match(await oidc.tokenIntrospection(found, (await service.issue()).plaintext_key), { active: true, iss: 'https://example.com/mecha' })
  t.same(asked, ['https://example.com/.well-known/oauth-authorization-server/mecha', 'https://example.com/mecha/v1/introspect', 'https://example.com/mecha/.well-known/jwks.json'])
})

t.test('openid-client reads the errors of both endpoints', async (t) => {
  const { service, issuer } = await served(t)
  const { plaintext_key } = await service.issue({ scopes: ['a'] })
  const runtime = await oidc.discovery(new URL(issuer), 'any-name', undefined, oidc.None(), options)
  const ask = (more: Record<string, string>, grant = EXCHANGE) => oidc.genericGrantRequest(runtime, grant, { subject_token: plaintext_key, subject_token_type: ACCESS_TOKEN, ...more })
  for (const [error, asked] of [
    ['invalid_scope', () => ask({ scope: 'a b' })],
    ['invalid_target', () => ask({ resource: 'not-a-uri' })],
    ['unsupported_grant_type', () => ask({}, 'client_credentials')],
    ['invalid_request', () => ask({ requested_token_type: 'urn:ietf:params:oauth:token-type:saml2' })],
    ['invalid_request', () => ask({ subject_token: 'nonsense' })],
  ] as const)
    await t.rejects(asked(), { name: 'ResponseBodyError', error, status: 400, error_description: /\w/ }, error)
  const stranger = await oidc.discovery(new URL(issuer), publicId('gateway', parsePublicId('mecha', 'key_01jd9p5v3fe8rr2k7m4q9wx0zt')!), {}, oidc.ClientSecretBasic(plaintext_key), options)
  await t.rejects(oidc.tokenIntrospection(stranger, plaintext_key), { name: 'WWWAuthenticateChallengeError', status: 401 })
})

t.test('openid-client verifies a signed introspection, of what is active and of what is not', async (t) => {
  const { service, issuer } = await served(t)
  const { key, plaintext_key } = await service.issue()
  const gateway = await gatewayClient(service, issuer, { introspection_signed_response_alg: 'EdDSA' })
  oidc.enableNonRepudiationChecks(gateway)
  t.match(await oidc.tokenIntrospection(gateway, plaintext_key), { active: true, sub: 'sales^acmecorp', jti: key.id })
  t.same(await oidc.tokenIntrospection(gateway, `${plaintext_key}x`), { active: false })
})

t.test('jose alone verifies an exchanged JWT', async (t) => {
  const { service, issuer } = await served(t)
  const { key, plaintext_key } = await service.issue({ mecha: 'buyer^seoul_cafe', scopes: ['a', 'b'] })
  const keys = createRemoteJWKSet(new URL(`${issuer}/.well-known/jwks.json`))
  const get = async (more: Record<string, string> = {}) => {
    const form = new URLSearchParams({ grant_type: EXCHANGE, subject_token: plaintext_key, subject_token_type: ACCESS_TOKEN, ...more })
    const response = await fetch(`${issuer}/v1/token`, { method: 'POST', body: form })
    t.match([response.status, response.headers.get('cache-control')], [200, 'no-store'])
    return ((await response.json()) as { access_token: string }).access_token
  }
  const jwt = await get({ audience: 'edge', resource: 'https://api.example.com/orders' })
  const { payload, protectedHeader } = await jwtVerify(jwt, keys, { issuer, audience: 'edge', typ: 'at+jwt', algorithms: ['EdDSA'], requiredClaims: ['exp', 'iat', 'jti'] })
  t.same(Object.keys(protectedHeader).sort(), ['alg', 'kid', 'typ'])
  const { iat, exp, jti, ...rest } = payload
  t.same(rest, {
    iss: issuer, sub: 'buyer^seoul_cafe', client_id: 'buyer^seoul_cafe', aud: ['edge', 'https://api.example.com/orders'], org_id: 'acme', crew: 'seoul_cafe',
    scope: 'a b', key_id: key.id, status: { status_list: { idx: 0, uri: `${issuer}/.well-known/token-status` } },
  })
  t.equal(exp! - iat!, 300)
  t.match(jti, /^[0-9a-z]{26}$/)
  const plain = await jwtVerify(await get(), keys, { issuer, audience: issuer, typ: 'at+jwt' })
  t.not(plain.payload.jti, jti, 'each JWT has an id of its own')
  t.equal(plain.protectedHeader.kid, decodeProtectedHeader(jwt).kid)
  await t.rejects(jwtVerify(jwt, keys, { audience: 'somebody else' }), { code: 'ERR_JWT_CLAIM_VALIDATION_FAILED' })
  const [head, , signature] = jwt.split('.') as [string, string, string]
  const forged = Buffer.from(JSON.stringify({ ...payload, sub: 'boss^acmecorp' })).toString('base64url')
  await t.rejects(jwtVerify(`${head}.${forged}.${signature}`, keys), { code: 'ERR_JWS_SIGNATURE_VERIFICATION_FAILED' })
})
