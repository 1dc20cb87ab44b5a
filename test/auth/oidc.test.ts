import { exportJWK, exportSPKI, SignJWT } from 'jose'
import t, { type Test } from 'tap'
import { loadConfig, type Environment } from '../../src/config.js'
import { makeKey, startIssuer, tokenOf, type Issuer } from '../helpers/issuer.js'
import { startService, type Answer, type Service } from '../helpers/service.js'

const now = () => Math.floor(Date.now() / 1000)

async function start(t: Test, environment: Environment = {}, algorithm: Parameters<typeof makeKey>[1] = 'ES256') {
  const key = await makeKey('first', algorithm)
  const issuer = await startIssuer(t, [key])
  const service = await startService(t, { OIDC_ISSUER: issuer.url, OIDC_JWKS_COOLDOWN: '1s', ...environment })
  const list = (token: string) => service.call('GET', '/v1/keys', { token })
  return { key, issuer, service, list }
}

const refused = { status: 401, body: { code: 'unauthenticated' }, headers: { 'www-authenticate': 'Bearer realm="mecha-keys", error="invalid_token"' } }

t.test('a token of the issuer is accepted, whichever of the algorithms it uses, and names its operator in the audit trail', async (t) => {
  for (const algorithm of ['ES256', 'RS256', 'EdDSA'] as const) {
    const { key, issuer, service } = await start(t, {}, algorithm)
    const token = await tokenOf(issuer, key)
    t.match(await service.call('POST', '/v1/keys', { token, body: { mecha: 'sales^acmecorp' } }), { status: 201, body: { key: { org_id: 'acme', created_by: 'operator:carol' } } }, algorithm)
  }
})

t.test('the key set is fetched once for many requests', async (t) => {
  const { key, issuer, list } = await start(t)
  const token = await tokenOf(issuer, key)
  t.equal((await list(token)).status, 200)
  const answers = await Promise.all(Array.from({ length: 20 }, () => list(token)))
  t.same([...new Set(answers.map(({ status }) => status))], [200])
  t.equal(issuer.fetches(), 1)
})

t.test('when the issuer rotates its keys, the new one is accepted and the old one refused', async (t) => {
  const { key, issuer, list } = await start(t)
  t.equal((await list(await tokenOf(issuer, key))).status, 200)
  const next = await makeKey('second')
  issuer.keys = [next]
  const token = await tokenOf(issuer, next)
  // A key that is not known is fetched, once the shortest time between two fetches is over.
  let answer: Answer
  const deadline = Date.now() + 20_000
  do answer = await list(token)
  while (answer.status === 401 && Date.now() < deadline)
  t.equal(answer.status, 200)
  t.match(await list(await tokenOf(issuer, key)), refused)
})

t.test('401: every token that is not exactly what it must be', async (t) => {
  const { key, issuer, service, list } = await start(t, { BUILTIN_ISSUER: 'off', OIDC_ALGORITHMS: 'ES256,RS256' })
  const impostor = await makeKey('first')
  const other = await makeKey('other', 'PS384')
  issuer.keys = [key, other]
  const part = (value: object) => Buffer.from(JSON.stringify(value)).toString('base64url')
  const good = await tokenOf(issuer, key)
  t.equal((await list(good)).status, 200, 'the one they are all made from')
  const claims = { iss: issuer.url, aud: 'mecha-keys', sub: 'eve', exp: now() + 600, org_id: 'acme', scope: 'keys:read' }
  const pem = new TextEncoder().encode(await exportSPKI(key.publicKey))
  const jwk = JSON.stringify(await exportJWK(key.publicKey))
  const hs256 = (secret: Uint8Array) => new SignJWT(claims).setProtectedHeader({ alg: 'HS256', kid: 'first' }).sign(secret)
  const [header, , signature] = good.split('.') as [string, string, string]
  const tokens: Record<string, string> = {
    'another audience': await tokenOf(issuer, key, { aud: 'elsewhere' }),
    'no audience': await tokenOf(issuer, key, { aud: undefined as never }),
    'another issuer': await tokenOf(issuer, key, { iss: 'https://elsewhere.example.com' }),
    'no issuer': await tokenOf(issuer, key, { iss: undefined as never }),
    expired: await tokenOf(issuer, key, { exp: now() - 60 }),
    'no end': await tokenOf(issuer, key, { exp: undefined as never }),
    'not yet': await tokenOf(issuer, key, { nbf: now() + 60 }),
    'no subject': await tokenOf(issuer, key, { sub: undefined as never }),
    'alg none': `${part({ alg: 'none', kid: 'first' })}.${part(claims)}.`,
    'alg none with a signature': `${part({ alg: 'none', kid: 'first' })}.${part(claims)}.${signature}`,
    'HS256 with the public key as its secret (PEM)': await hs256(pem),
    'HS256 with the public key as its secret (JWK)': await hs256(new TextEncoder().encode(jwk)),
    'an algorithm of the key set that is not pinned': await tokenOf(issuer, other),
    "another's key under the same kid": await tokenOf(issuer, impostor),
    'a key brought along': await tokenOf(issuer, impostor, {}, { jwk: await exportJWK(impostor.publicKey), jku: 'http://127.0.0.1:1/jwks' }),
    'another payload': `${header}.${part({ ...claims, org_id: 'rival' })}.${signature}`,
    'a signature cut short': good.slice(0, -4),
    'the built-in issuer, which is off': await service.token(),
    'the built-in issuer claimed': await tokenOf(issuer, key, { iss: 'mecha-keys:builtin' }),
    garbage: 'x.y.z',
  }
  for (const [what, token] of Object.entries(tokens)) t.match(await list(token), refused, what)
  for (const authorization of ['', 'Bearer', 'Bearer ', `Basic ${good}`, good, `Bearer ${good} ${good}`, `Bearer ${good},`])
    t.match(await service.call('GET', '/v1/keys', { headers: { authorization } }), { status: 401, body: { code: 'unauthenticated' } }, authorization.slice(0, 12))
  t.equal((await list(good)).status, 200, 'and it is still good')
})

t.test('the two issuers do not vouch for each other', async (t) => {
  const { key, issuer, service, list } = await start(t)
  t.equal((await list(await tokenOf(issuer, key))).status, 200)
  t.equal((await list(await service.token())).status, 200)
  t.match(await list(await tokenOf(issuer, key, { iss: 'mecha-keys:builtin' })), refused)
})

t.test('what the claims must hold', async (t) => {
  const { key, issuer, service, list } = await start(t)
  const listWith = async (claims: object) => list(await tokenOf(issuer, key, claims as never))
  for (const org_id of [undefined, '', 7, ['acme'], 'a b', 'x'.repeat(129), null]) t.match(await listWith({ org_id }), refused, `org_id ${JSON.stringify(org_id)}`)
  for (const scope of [7, { a: 1 }, [7]]) t.match(await listWith({ scope }), refused, `scope ${JSON.stringify(scope)}`)
  for (const crews of ['acmecorp', 7, [7], ['UPPER'], {}, null]) t.match(await listWith({ crews }), refused, `crews ${JSON.stringify(crews)}`)
  t.equal((await listWith({ scope: ['keys:read', 'whatever'] })).status, 200, 'scopes as a list')
  t.match(await listWith({ scope: 'whatever KEYS:READ keys:reader' }), { status: 403, body: { code: 'insufficient_scope' } })
  t.match(await listWith({ scope: undefined }), { status: 403 })
  await service.issue()
  t.equal((await listWith({})).body.keys.length, 1)
  t.equal((await listWith({ crews: ['acmecorp'] })).body.keys.length, 1)
  t.equal((await listWith({ crews: [] })).body.keys.length, 0, 'an empty list is no crew')
})

t.test('the claims can have other names', async (t) => {
  const environment = { OIDC_ORG_CLAIM: 'https://acme.example/tenant', OIDC_SCOPE_CLAIM: 'permissions', OIDC_CREWS_CLAIM: 'teams', OIDC_AUDIENCE: 'keys-api' }
  const { key, issuer, list } = await start(t, environment)
  const claims = { org_id: undefined, scope: undefined, aud: ['x', 'keys-api'], 'https://acme.example/tenant': 'acme', permissions: ['keys:read'] }
  t.equal((await list(await tokenOf(issuer, key, claims as never))).status, 200)
  t.match(await list(await tokenOf(issuer, key, { ...claims, teams: 'x' })), refused)
  t.match(await list(await tokenOf(issuer, key, { aud: 'keys-api' })), refused)
})

t.test('503, never 401: an issuer that is down or talks nonsense, until it is back', async (t) => {
  const key = await makeKey('first')
  const unavailable = { status: 503, body: { code: 'issuer_unavailable' }, headers: { 'retry-after': '5' } }
  for (const fault of ['status 500', 'not JSON', 'another issuer', 'no answer'] as const) {
    const issuer: Issuer = await startIssuer(t, [key])
    issuer.fault = fault
    const service: Service = await startService(t, { OIDC_ISSUER: issuer.url })
    const token = await tokenOf(issuer, key)
    t.match(await service.call('GET', '/v1/keys', { token }), unavailable, fault)
    issuer.fault = undefined
    t.equal((await service.call('GET', '/v1/keys', { token })).status, 200, `${fault}, and back`)
  }
  const { key: own, issuer, service, list } = await start(t)
  await issuer.down()
  t.match(await list(await tokenOf(issuer, own)), unavailable, 'down')
  t.equal((await list(await service.token())).status, 200, 'the built-in issuer needs nobody')
  await issuer.up()
  t.equal((await list(await tokenOf(issuer, own))).status, 200, 'up')
})

t.test('settings that would weaken the check do not start', async (t) => {
  for (const [environment, setting] of [
    [{ OIDC_ISSUER: 'http://issuer.example.com' }, 'OIDC_ISSUER'],
    [{ OIDC_JWKS_URL: 'http://issuer.example.com/jwks' }, 'OIDC_JWKS_URL'],
    [{ OIDC_ALGORITHMS: 'HS256' }, 'OIDC_ALGORITHMS'],
    [{ OIDC_ALGORITHMS: 'RS256,none' }, 'OIDC_ALGORITHMS'],
    [{ OIDC_ALGORITHMS: '' }, 'OIDC_ALGORITHMS'],
    [{ OIDC_AUDIENCE: ' ' }, 'OIDC_AUDIENCE'],
  ] as const)
    t.throws(() => loadConfig(environment), { message: new RegExp(`^${setting} must`) }, JSON.stringify(environment))
})
