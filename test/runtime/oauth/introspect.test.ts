import { randomBytes } from 'node:crypto'
import { createLocalJWKSet, decodeJwt, jwtVerify, SignJWT, UnsecuredJWT } from 'jose'
import t, { type Test } from 'tap'
import { newId } from '../../../src/credentials/id.js'
import { deriveRoot, rootsOf } from '../../../src/credentials/roots.js'
import { openSigningKey } from '../../../src/credentials/signing-key.js'
import { makeToken } from '../../../src/credentials/token.js'
import { applied } from '../../helpers/database.js'
import { costs } from '../../helpers/metrics.js'
import { exchanged, introspect, sendForm, type Form } from '../../helpers/oauth.js'
import { isSameAnswer } from '../../helpers/refusals.js'
import { fresh, startService, type Service } from '../../helpers/service.js'

async function gatewayOf(service: Service, org = 'acme') {
  const { body } = await service.call('POST', '/v1/gateways', { token: await service.token({ org }), body: { name: 'edge' } })
  return { id: body.gateway.id as string, credential: body.plaintext_key as string }
}

const basic = (user: string, password: string) => ({ authorization: `Basic ${Buffer.from(`${user}:${password}`).toString('base64')}` })

t.test('200: whatever is not active is answered with the same few bytes', async (t) => {
  const service = await startService(t, { PUBLIC_URL: 'https://keys.example.com' })
  const token = await service.token()
  const { credential } = await gatewayOf(service)
  const good = await service.issue({ scopes: ['a'] })
  const goodJwt = await exchanged(service, good.plaintext_key)
  t.match(await introspect(service, credential, good.plaintext_key), { active: true, iss: 'https://keys.example.com' })
  t.match(await introspect(service, credential, goodJwt), { active: true, iss: 'https://keys.example.com' })

  const ended = async (end: (id: string) => Promise<unknown>, mecha = 'sales^acmecorp') => {
    const { key, plaintext_key } = await service.issue({ mecha })
    const jwt = await exchanged(service, plaintext_key)
    await end(key.id)
    return [plaintext_key, jwt]
  }
  const { db } = service.database
  const revoked = await ended((id) => service.call('POST', `/v1/keys/${id}/revoke`, { token }))
  const disabled = await ended((id) => service.call('PATCH', `/v1/keys/${id}`, { token, body: { enabled: false } }))
  const rotated = await ended((id) => service.call('POST', `/v1/keys/${id}/rotate`, { token, body: { overlap_seconds: 0 } }))
  const expired = await ended(() => db.updateTable('keys').set({ expires_at: new Date() }).where('mecha', '=', 'old^acmecorp').execute(), 'old^acmecorp')
  await applied(service.database)
  const stranger = await service.issue({ mecha: 'spy^rival' }, { org: 'rival' })

  // JWTs that anybody could make, and one that the service made for another purpose.
  const signedBy = (key: Parameters<SignJWT['sign']>[0], header: object = {}, claims: object = {}) =>
    new SignJWT({ ...decodeJwt(goodJwt), ...claims }).setProtectedHeader({ alg: 'EdDSA', typ: 'at+jwt', ...JSON.parse(Buffer.from(goodJwt.split('.')[0]!, 'base64url').toString()), ...header }).sign(key)
  const stored = await db.selectFrom('signing_keys').selectAll().executeTakeFirstOrThrow()
  const real = openSigningKey(stored, rootsOf(service.config.ROOT_SECRETS!)).privateKey
  const [, body, signature] = goodJwt.split('.') as [string, string, string]
  t.match(await introspect(service, credential, await signedBy(real)), { active: true }, 'what the service itself would have signed is active')
  const forged = [
    new UnsecuredJWT(decodeJwt(goodJwt)).encode(), `${goodJwt.slice(0, -4)}AAAA`, `..${signature}`, `a.${body}.b`, '..', 'a.b.c',
    await signedBy(new TextEncoder().encode('x'.repeat(32)), { alg: 'HS256' }),
    await signedBy(real, { typ: 'token-introspection+jwt' }), await signedBy(real, { typ: 'statuslist+jwt' }), await signedBy(real, { typ: 'JWT' }), await signedBy(real, { kid: 'x'.repeat(43) }),
    await signedBy(real, {}, { iss: 'https://elsewhere.example.com' }), await signedBy(real, {}, { exp: Math.floor(Date.now() / 1000) - 60 }),
    await signedBy(real, {}, { exp: undefined }), await signedBy(real, {}, { key_id: undefined }), await signedBy(real, {}, { key_id: 'key_01jd9p5v3fe8rr2k7m4q9wx0zt' }),
  ]
  const others = [
    'nonsense', ' ', `${good.plaintext_key} `, good.plaintext_key.slice(1), credential, stranger.plaintext_key, await exchanged(service, stranger.plaintext_key),
    makeToken('mecha', newId(), deriveRoot(randomBytes(32).toString('hex'))).text, makeToken('mecha', newId(), rootsOf(service.config.ROOT_SECRETS!)[0]).text, 'x'.repeat(15_000),
  ]
  const inactive = [...revoked, ...disabled, ...rotated, ...expired, ...forged, ...others]
  const [first, ...rest] = await Promise.all(inactive.map((one) => sendForm(service, '/v1/introspect', { token: one }, { authorization: `Bearer ${credential}` })))
  t.match(first, { status: 200, text: '{"active":false}', headers: { 'cache-control': 'no-store', 'content-type': 'application/json; charset=utf-8' } })
  for (const [index, answer] of rest.entries()) isSameAnswer(t, answer, first!, inactive[index + 1]!.slice(0, 40))
})

t.test('a disabled key and its JWTs are active again when it is enabled', async (t) => {
  const service = await startService(t)
  const token = await service.token()
  const { credential } = await gatewayOf(service)
  const { key, plaintext_key } = await service.issue()
  const jwt = await exchanged(service, plaintext_key)
  for (const enabled of [false, true]) {
    await service.call('PATCH', `/v1/keys/${key.id}`, { token, body: { enabled } })
    for (const one of [plaintext_key, jwt]) t.equal((await introspect(service, credential, one)).active, enabled)
  }
})

t.test('a key without scopes and without an end has neither in its introspection', async (t) => {
  const service = await startService(t)
  const { credential } = await gatewayOf(service)
  const { plaintext_key } = await service.issue()
  t.same(Object.keys(await introspect(service, credential, plaintext_key)).sort(), ['active', 'client_id', 'crew', 'iat', 'iss', 'jti', 'key_id', 'org_id', 'sub', 'token_type', 'username'])
})

t.test('a gateway of all organizations is told of every one, and one of an organization of its own', async (t) => {
  const service = await startService(t)
  const { plaintext_key } = await service.issue()
  const jwt = await exchanged(service, plaintext_key)
  const [own, rival] = [await gatewayOf(service), await gatewayOf(service, 'rival')]
  for (const one of [plaintext_key, jwt]) {
    t.match(await introspect(service, own.credential, one), { active: true, org_id: 'acme' })
    t.same(await introspect(service, rival.credential, one), { active: false })
  }
})

t.test('401: by bearer or by HTTP Basic, encoded as OAuth has it, and in no other way', async (t) => {
  const service = await startService(t)
  const { id, credential } = await gatewayOf(service)
  const other = await gatewayOf(service)
  const { plaintext_key } = await service.issue()
  const ask = (headers: Record<string, string>) => sendForm(service, '/v1/introspect', { token: plaintext_key }, headers)
  const encoded = (text: string) => text.replace(/[_a-z]/g, (character) => `%${character.charCodeAt(0).toString(16)}`)
  for (const headers of [{ authorization: `Bearer ${credential}` }, { authorization: `bearer  ${credential}` }, basic(id, credential), basic(encoded(id), encoded(credential)), { authorization: basic(id, credential).authorization.replace('Basic', 'basic') }])
    t.match(await ask(headers), { status: 200, body: { active: true } }, headers.authorization.slice(0, 12))

  const refused = await Promise.all([
    {}, { authorization: '' }, { authorization: 'Basic' }, { authorization: 'Basic !' }, { authorization: `Basic ${Buffer.from(credential).toString('base64')}` },
    { authorization: `Digest ${credential}` }, { 'x-gateway-authorization': `Bearer ${credential}` },
  ].map((headers) => ask(headers as Record<string, string>)))
  const invalid = await Promise.all([
    basic('', credential), basic(other.id, credential), basic(id, `${credential}x`), basic('anybody', credential), basic(credential, credential), { authorization: `Bearer ${plaintext_key}` }, basic(id, plaintext_key),
  ].map(ask))
  for (const [index, answer] of [...refused, ...invalid].entries())
    t.match(answer, { status: 401, body: { error: 'invalid_client', code: 'unauthenticated' }, headers: { 'cache-control': 'no-store', 'content-type': /^application\/json/ } }, String(index))
  for (const [answers, challenge] of [[refused, 'Bearer realm="mecha-keys", Basic realm="mecha-keys", charset="UTF-8"'], [invalid, 'Bearer realm="mecha-keys", error="invalid_token", Basic realm="mecha-keys", charset="UTF-8"']] as const)
    for (const answer of answers) {
      t.equal(answer.headers['www-authenticate'], challenge)
      isSameAnswer(t, answer, answers[0]!, 'whatever is wrong with it')
    }
})

t.test('400, 413 and 415: what is no introspection request', async (t) => {
  const service = await startService(t)
  const { credential } = await gatewayOf(service)
  const authorization = `Bearer ${credential}`
  const send = (form: Form | string, headers = {}) => sendForm(service, '/v1/introspect', form, { authorization, ...headers })
  for (const [form, about] of [[{}, /token/], ['token', /token/], [{ token: '' }, /token/], [{ token: ['a', 'b'] }, /token/], [{ token: 'a', token_type_hint: ['b', 'c'] }, /token_type_hint/]] as const)
    t.match(await send(form as Form), { status: 400, body: { error: 'invalid_request', error_description: about, code: 'invalid_request' } }, JSON.stringify(form))
  t.match(await send({ token: 'x'.repeat(17_000) }), { status: 413, body: { error: 'invalid_request', code: 'body_too_large' } })
  for (const type of ['application/json', 'text/plain', 'multipart/form-data; boundary=x'])
    t.match(await service.call('POST', '/v1/introspect', { token: credential, body: '{"token":"x"}', headers: { 'content-type': type } }), {
      status: 415, body: { error: 'invalid_request', code: 'unsupported_media_type', detail: 'Send application/x-www-form-urlencoded.' },
    }, type)
  t.match(await send('token=%zz&unknown=1&__proto__=x&constructor=y'), { status: 200, text: '{"active":false}' }, 'what is not known is passed over')
  t.match(await service.call('POST', '/v1/verify', { token: credential, body: 'key=x', headers: { 'content-type': 'application/x-www-form-urlencoded' } }), { status: 415 }, 'a form is taken here alone')
  t.match(await service.call('GET', '/v1/introspect', { token: credential }), { status: 405, headers: { allow: 'POST' } })
})

t.test('a signed introspection is for its gateway alone, and cannot be taken for a token', async (t) => {
  const service = await startService(t, { PUBLIC_URL: 'https://keys.example.com' })
  const { id, credential } = await gatewayOf(service)
  const { key, plaintext_key } = await service.issue()
  const keys = createLocalJWKSet((await service.call('GET', '/.well-known/jwks.json')).body)
  const ask = (token: string, accept: string, headers: Record<string, string> = basic(id, credential)) => sendForm(service, '/v1/introspect', { token }, { ...headers, accept })
  const type = 'application/token-introspection+jwt'
  const answer = await ask(plaintext_key, type)
  t.match(answer, { status: 200, headers: { 'content-type': type, 'cache-control': 'no-store', vary: 'Accept' } })
  const { payload, protectedHeader } = await jwtVerify(answer.text, keys, { issuer: 'https://keys.example.com', audience: id, typ: 'token-introspection+jwt' })
  t.equal(protectedHeader.alg, 'EdDSA')
  t.same(Object.keys(payload).sort(), ['aud', 'iat', 'iss', 'token_introspection'])
  t.match(payload['token_introspection'], { active: true, jti: key.id, sub: 'sales^acmecorp' })
  t.same((await jwtVerify((await ask('nonsense', type)).text, keys, { audience: id })).payload['token_introspection'], { active: false })
  t.equal((await jwtVerify((await ask(plaintext_key, type, { authorization: `Bearer ${credential}` })).text, keys)).payload.aud, id)
  t.same(await introspect(service, credential, answer.text), { active: false }, 'it is no access token')
  for (const [accept, signed] of [['*/*', false], ['application/json', false], [`${type};q=0, application/json`, false], [`application/json;q=0.5, ${type}`, true], ['text/html', false]] as const) {
    const { headers } = await ask(plaintext_key, accept)
    t.same([String(headers['content-type']).startsWith(type), headers['vary']], [signed, 'Accept'], accept)
  }
})

t.test('what is known or forged costs no query and no argon2, a JWT neither', async (t) => {
  const service = await startService(t)
  await fresh(service)
  const { credential } = await gatewayOf(service)
  const { plaintext_key } = await service.issue()
  const jwt = await exchanged(service, plaintext_key)
  await introspect(service, credential, plaintext_key)
  const known = await costs(service)
  const foreign = deriveRoot(randomBytes(32).toString('hex'))
  for (let i = 0; i < 10; i++) {
    for (const one of [plaintext_key, jwt]) t.match(await introspect(service, credential, one), { active: true })
    for (const one of [makeToken('mecha', newId(), foreign).text, `${plaintext_key}x`, `${jwt}x`]) t.same(await introspect(service, credential, one), { active: false })
  }
  t.same(await costs(service), known)
})

t.test('a JWT is introspected by a replica that has never seen its key', async (t) => {
  const first = await startService(t, { PUBLIC_URL: 'https://keys.example.com' })
  const { credential } = await gatewayOf(first)
  const { key, plaintext_key } = await first.issue()
  const jwt = await exchanged(first, plaintext_key)
  const second = await replica(t, first)
  t.match(await introspect(second, credential, jwt), { active: true, key_id: key.id })
  await first.call('POST', `/v1/keys/${key.id}/revoke`, { token: await first.token() })
  t.same(await introspect(second, credential, jwt), { active: false })
})

function replica(t: Test, service: Service): Promise<Service> {
  return startService(t, { PLANES: 'runtime', ROOT_SECRETS: service.config.ROOT_SECRETS!.join(), PUBLIC_URL: service.config.PUBLIC_URL }, service.database)
}
