import { createHmac, createPublicKey, type KeyObject } from 'node:crypto'
import { decodeJwt, importPKCS8, SignJWT } from 'jose'
import t, { type Test } from 'tap'
import { loadConfig } from '../../../src/config.js'
import { createDatabase } from '../../helpers/database.js'
import { claimsOf, makeKey, sign, startIssuer, type Claims, type SigningKey } from '../../helpers/issuer.js'
import { startService, type Answer, type Service } from '../../helpers/service.js'

const BUILTIN = 'mecha-keys:builtin'
const [rsa, ec, ed, es384] = await Promise.all([makeKey('RS256'), makeKey('ES256'), makeKey('EdDSA'), makeKey('ES384')])

const issuer = await startIssuer(t, [ec, rsa, ed, es384])
const service = await startService(t, { OIDC_ISSUER: issuer.url }, await createDatabase(t))

t.test('a token of the OIDC issuer is accepted', async (t) => {
  for (const key of [rsa, ec, ed]) t.equal((await list(service, await issuer.token({}, key))).status, 200, key.alg)
  t.equal((await list(service, await issuer.token({ aud: ['billing', 'mecha-keys'] }))).status, 200, 'one audience of several')
  t.equal((await service.call('GET', '/v1/keys', { headers: { authorization: `bEARER  ${await issuer.token()}` } })).status, 200, 'the scheme in any case')
})

t.test('the name of who did something is of the token', async (t) => {
  const token = await issuer.token({ sub: 'auth0|olivia', scope: 'keys:issue' })
  const answer = await service.call('POST', '/v1/keys', { token, body: { mecha: 'named^acmecorp' } })
  t.match(answer.body.key, { org_id: 'acme', created_by: /auth0\|olivia$/ })
})

t.test('the claims of a token are checked', async (t) => {
  const now = Math.floor(Date.now() / 1000)
  const cases: Record<string, Claims> = {
    'another audience': { aud: 'billing' },
    'no audience': { aud: undefined },
    'an audience that only starts the same': { aud: 'mecha-keys-staging' },
    'another issuer': { iss: 'https://login.example.com' },
    'the issuer with a slash more': { iss: `${issuer.url}/` },
    'no issuer': { iss: undefined },
    'an issuer that is no text': { iss: [issuer.url] },
    'expired': { exp: now - 60 },
    'not valid yet': { nbf: now + 60 },
    'no expiry': { exp: undefined },
    'an expiry that is no number': { exp: String(now + 600) },
    'no subject': { sub: undefined },
    'an empty subject': { sub: '' },
    'a subject that is no text': { sub: 42 },
    'a subject that is null': { sub: null },
    'a subject that no database can store': { sub: 'oli\u0000via' },
    'a subject too long for a name': { sub: 'o'.repeat(256) },
  }
  for (const [what, claims] of Object.entries(cases)) isRefused(t, await list(service, await issuer.token(claims)), what)
})

t.test('clocks may be off by the tolerance', async (t) => {
  const tolerant = await startService(t, { OIDC_ISSUER: issuer.url, OIDC_CLOCK_TOLERANCE: '10m' }, service.database)
  const now = Math.floor(Date.now() / 1000)
  t.equal((await list(tolerant, await issuer.token({ exp: now - 60, nbf: now + 60 }))).status, 200)
  isRefused(t, await list(tolerant, await issuer.token({ exp: now - 1200 })), 'and not by more')
})

t.test('the signature of a token is checked', async (t) => {
  const claims = claimsOf(issuer.url)
  const imposter = await makeKey('ES256', ec.kid)
  const embedded = await makeKey('ES256', 'attacker')
  const good = await issuer.token()
  const [header, , signature] = good.split('.') as [string, string, string]
  const attackersSet = await startIssuer(t, [embedded])
  const cases: Record<string, string> = {
    'alg none': `${encode({ alg: 'none' })}.${encode(claims)}.`,
    'alg none, with the signature of a good token': `${encode({ alg: 'none', kid: ec.kid })}.${encode(claims)}.${signature}`,
    'alg None in another case': `${encode({ alg: 'nOnE' })}.${encode(claims)}.`,
    'HS256 by the public key in PEM': hs256(claims, rsa, pem(rsa)),
    'HS256 by the public key in DER': hs256(claims, rsa, publicKeyOf(rsa).export({ type: 'spki', format: 'der' })),
    'HS256 by the public JWK': hs256(claims, rsa, JSON.stringify(rsa.jwk)),
    'HS256 by the modulus': hs256(claims, rsa, Buffer.from(rsa.jwk.n!, 'base64url')),
    'an algorithm that is not accepted, of a key of the set': await issuer.token({}, es384),
    'another key with the same kid': await sign(claims, imposter),
    'a key that is not in the set': await sign(claims, embedded),
    'a key in the header': await sign(claims, imposter, { jwk: imposter.jwk }),
    'a key and its kid in the header': await sign(claims, embedded, { jwk: embedded.jwk }),
    'a key set of the attacker named in the header': await sign(claims, embedded, { jku: `${attackersSet.url}/jwks` }),
    'a certificate address in the header': await sign(claims, embedded, { x5u: `${attackersSet.url}/jwks` }),
    'another payload': `${header}.${encode({ ...claims, org_id: 'globex' })}.${signature}`,
    'another header': `${encode({ alg: 'ES256', kid: ec.kid, typ: 'x' })}.${encode(decodeJwt(good))}.${signature}`,
    'no signature': `${header}.${encode(claims)}.`,
    'a signature cut short': good.slice(0, -4),
    'a header that must be understood and is not': await new SignJWT(claims)
      .setProtectedHeader({ alg: 'ES256', kid: ec.kid, crit: ['exp'], exp: 1 })
      .sign(ec.privateKey, { crit: { exp: true } }),
  }
  for (const [what, token] of Object.entries(cases)) isRefused(t, await list(service, token), what)
  t.same(attackersSet.requests, { discovery: 0, jwks: 0 }, 'and nothing was fetched from where a token pointed')
  t.equal((await list(service, good)).status, 200, 'the token that they were made from is good')
})

t.test('what is no token is refused', async (t) => {
  for (const token of ['garbage', 'a.b.c', '..', '=', 'eyJhbGciOiJub25lIn0', `${encode({ alg: 'ES256' })}.${encode([])}.x`, `${encode({ alg: 'ES256' })}.${encode(null)}.x`])
    isRefused(t, await list(service, token), token)
  const good = await issuer.token()
  for (const authorization of ['', 'Bearer', 'Bearer ', 'Bearer  ', good, `Basic ${good}`, `Basic ${Buffer.from('alice:x').toString('base64')}`, `DPoP ${good}`, `Bearer ${good} ${good}`, `Bearer ${good}, Bearer ${good}`, `XBearer ${good}`]) {
    const answer = await service.call('GET', '/v1/keys', { headers: { authorization } })
    t.equal(answer.status, 401, authorization.replaceAll(good, '<token>'))
    t.equal(answer.body.code, 'unauthenticated')
    t.match(answer.headers['www-authenticate'], /^Bearer realm="mecha-keys"/)
  }
})

t.test('an issuer vouches for its own tokens alone', async (t) => {
  const builtinKey = { alg: 'EdDSA', kid: 'builtin', privateKey: await importPKCS8(service.config.BUILTIN_ISSUER_KEY!, 'EdDSA') } as SigningKey
  const builtinClaims = claimsOf(BUILTIN)
  t.equal((await list(service, await sign(builtinClaims, builtinKey))).status, 200, 'the built-in one by its key')
  isRefused(t, await list(service, await sign(builtinClaims, ed)), 'the built-in one by a key of the OIDC issuer')
  isRefused(t, await list(service, await sign(builtinClaims, ec)), 'the built-in one by another kind of key')
  isRefused(t, await list(service, hs256(builtinClaims, ed, createPublicKey(service.config.BUILTIN_ISSUER_KEY!).export({ type: 'spki', format: 'pem' }))), 'the built-in one by an HMAC')
  isRefused(t, await list(service, await sign(claimsOf(issuer.url), builtinKey)), "the OIDC issuer by the built-in one's key")
  isRefused(t, await list(service, await sign(claimsOf(issuer.url), { ...builtinKey, kid: ed.kid })), "… under the kid of the OIDC issuer's")
})

t.test('a token of the built-in issuer is refused where that is off', async (t) => {
  const off = await startService(t, { OIDC_ISSUER: issuer.url, BUILTIN_ISSUER: 'off' }, service.database)
  t.equal((await list(service, await off.token())).status, 200, 'the token is good elsewhere')
  isRefused(t, await list(off, await off.token()), 'and not here')
  t.equal((await list(off, await issuer.token())).status, 200)
})

t.test('only the algorithms that are set are accepted', async (t) => {
  const strict = await startService(t, { OIDC_ISSUER: issuer.url, OIDC_ALGORITHMS: 'ES384' }, service.database)
  t.equal((await list(strict, await issuer.token({}, es384))).status, 200)
  for (const key of [ec, rsa, ed]) isRefused(t, await list(strict, await issuer.token({}, key)), key.alg)
})

t.test('the type of a token is pinned: an access token passes, and an ID token does not where its issuer tells them apart', async (t) => {
  const typed = async (service: Service, typ: unknown) => list(service, await sign(claimsOf(issuer.url), ec, typ === undefined ? {} : { typ }))
  for (const typ of [undefined, 'at+jwt', 'AT+JWT', 'application/at+jwt', 'Application/AT+JWT']) t.equal((await typed(service, typ)).status, 200, String(typ))
  for (const typ of ['JWT', 'jwt', 'id_token+jwt', 'logout+jwt', 'dpop+jwt', 'none', '', 'x/at+jwt', 'at+jwt ', 'application/application/at+jwt']) {
    const answer = await typed(service, typ)
    isRefused(t, answer, typ)
    t.match(answer.body.detail, /typ/)
  }
  const withTypes = (OIDC_TOKEN_TYPES: string) => startService(t, { OIDC_ISSUER: issuer.url, OIDC_TOKEN_TYPES }, service.database)
  const strict = await withTypes('at+jwt')
  t.equal((await typed(strict, 'at+jwt')).status, 200)
  for (const typ of [undefined, 'JWT', 'none']) isRefused(t, await typed(strict, typ), `strict, ${String(typ)}`)
  const older = await withTypes('JWT,application/secevent+jwt')
  for (const typ of ['JWT', 'jwt', 'application/jwt', 'secevent+jwt']) t.equal((await typed(older, typ)).status, 200, typ)
  for (const typ of [undefined, 'at+jwt']) isRefused(t, await typed(older, typ), `JWT alone, ${String(typ)}`)
  t.equal((await list(strict, await strict.token())).status, 200, 'the built-in issuer signs nothing but tokens of operators')
  for (const wrong of ['', 'at+jwt,', 'at jwt', 'text/html;q=1', 'at+jwt,*']) t.throws(() => loadConfig({ OIDC_TOKEN_TYPES: wrong }), { message: /^OIDC_TOKEN_TYPES must/ }, wrong)
})

t.test('a token is nowhere in the log', async (t) => {
  const tokens = [await issuer.token(), await issuer.token({ aud: 'billing' })]
  for (const token of tokens) await list(service, token)
  for (const part of tokens.flatMap((token) => token.split('.').slice(1))) t.notMatch(service.logs(), part)
})

t.test('settings that would weaken the check do not start', async (t) => {
  const refused = (environment: Record<string, string>, message: RegExp) =>
    t.throws(() => loadConfig(environment), { message }, JSON.stringify(environment))
  for (const name of ['OIDC_ISSUER', 'OIDC_JWKS_URL'])
    for (const url of ['http://login.example.com', 'http://10.0.0.1/', 'http://127.0.0.1.example.com', 'http://localhost.example.com', 'ftp://login.example.com', 'login.example.com', 'file:///etc/passwd', ' '])
      refused({ [name]: url }, new RegExp(`^${name} must`))
  for (const algorithms of ['HS256', 'none', 'RS256,HS256', 'RS256,none', 'NONE', 'HS512', 'RS256,', ''])
    refused({ OIDC_ALGORITHMS: algorithms }, /^OIDC_ALGORITHMS must/)
  for (const url of ['https://login.example.com/realms/main', 'http://127.0.0.1:9000', 'http://localhost:9000', 'http://[::1]:9000'])
    t.equal(loadConfig({ OIDC_ISSUER: url }).OIDC_ISSUER, url)
})

function list({ call }: Service, token: string): Promise<Answer> {
  return call('GET', '/v1/keys', { token })
}

function isRefused(t: Test, { status, headers, body }: Answer, what: string): void {
  const challenge = 'Bearer realm="mecha-keys", error="invalid_token"'
  t.match({ status, challenge: headers['www-authenticate'], code: body.code }, { status: 401, challenge, code: 'unauthenticated' }, what)
}

function encode(value: unknown): string {
  return Buffer.from(JSON.stringify(value)).toString('base64url')
}

function publicKeyOf({ jwk }: SigningKey): KeyObject {
  return createPublicKey({ key: jwk as import('node:crypto').JsonWebKey, format: 'jwk' })
}

function pem(key: SigningKey): string {
  return publicKeyOf(key).export({ type: 'spki', format: 'pem' }).toString()
}

/** A token signed with what anybody can know, in the hope that the service takes it for a shared secret. */
function hs256(claims: Claims, { kid }: SigningKey, secret: string | Buffer): string {
  const signed = `${encode({ alg: 'HS256', kid })}.${encode(claims)}`
  return `${signed}.${createHmac('sha256', secret).update(signed).digest('base64url')}`
}
