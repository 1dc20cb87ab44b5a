import { randomBytes } from 'node:crypto'
import { decodeJwt, decodeProtectedHeader } from 'jose'
import t from 'tap'
import { newId } from '../../../src/credentials/id.js'
import { deriveRoot, rootsOf } from '../../../src/credentials/roots.js'
import { makeToken } from '../../../src/credentials/token.js'
import { applied, createDatabase } from '../../helpers/database.js'
import { eventually } from '../../helpers/eventually.js'
import { ACCESS_TOKEN, exchange, EXCHANGE, exchanged, introspect, sendForm, type Form } from '../../helpers/oauth.js'
import { isSameAnswer } from '../../helpers/refusals.js'
import { fresh, startService, type Answer } from '../../helpers/service.js'
import { costs } from '../../helpers/metrics.js'
import { layWire } from '../../helpers/wire.js'

t.test('200: scopes are all of the key\'s, or those of them that are asked for', async (t) => {
  const service = await startService(t)
  const { plaintext_key } = await service.issue({ scopes: ['a', 'b', 'c'] })
  for (const [scope, granted] of [[undefined, 'a b c'], ['', 'a b c'], ['b', 'b'], ['c a', 'c a'], ['a  a', 'a']] as const) {
    const { status, body } = await exchange(service, plaintext_key, scope === undefined ? {} : { scope })
    t.match([status, body.scope, decodeJwt(body.access_token)['scope']], [200, granted, granted], String(scope))
  }
  const bare = await exchange(service, (await service.issue()).plaintext_key)
  t.same(Object.keys(bare.body).sort(), ['access_token', 'expires_in', 'issued_token_type', 'token_type'], 'a key without scopes')
  t.notOk('scope' in decodeJwt(bare.body.access_token))
  for (const scope of ['d', 'a d', 'A', 'a,b', 'a "']) t.match(await exchange(service, plaintext_key, { scope }), { status: 400, body: { error: 'invalid_scope', code: 'invalid_scope' } }, scope)
})

t.test('200: whom it is for', async (t) => {
  const service = await startService(t, { PUBLIC_URL: 'https://keys.example.com/mecha/' })
  const { plaintext_key } = await service.issue()
  for (const [asked, aud] of [
    [{}, 'https://keys.example.com/mecha'], [{ audience: '' }, 'https://keys.example.com/mecha'], [{ audience: 'edge' }, 'edge'], [{ audience: ['edge', 'core', 'edge'] }, ['edge', 'core']],
    [{ resource: 'urn:x:y' }, 'urn:x:y'], [{ audience: 'edge', resource: ['https://a.example/x', 'https://b.example/'] }, ['edge', 'https://a.example/x', 'https://b.example/']],
  ] as const)
    t.same(decodeJwt(await exchanged(service, plaintext_key, asked as Form)).aud, aud, JSON.stringify(asked))
  for (const wrong of [{ resource: 'edge' }, { resource: '/x' }, { resource: 'https://a.example/#x' }, { audience: 'two words' }, { audience: 'é' }, { audience: 'x'.repeat(257) }, { audience: Array.from({ length: 11 }, (_, i) => `a${i}`) }])
    t.match(await exchange(service, plaintext_key, wrong), { status: 400, body: { error: 'invalid_target' } }, JSON.stringify(wrong))
})

t.test('200: it lives for TOKEN_TTL, and never longer than its key', async (t) => {
  const service = await startService(t, { TOKEN_TTL: '90s' })
  const token = await service.token()
  const life = async (key: string) => {
    const { body } = await exchange(service, key)
    const { iat, exp } = decodeJwt(body.access_token)
    t.equal(body.expires_in, exp! - iat!)
    return { iat: iat!, exp: exp! }
  }
  const long = await life((await service.issue({ expires_in: 3600 })).plaintext_key)
  t.equal(long.exp - long.iat, 90)
  const short = await service.issue({ expires_in: 30 })
  t.equal((await life(short.plaintext_key)).exp, Math.floor(Date.parse(short.key.expires_at) / 1000))
  const rotated = await service.issue()
  const { body } = await service.call('POST', `/v1/keys/${rotated.key.id}/rotate`, { token, body: { overlap_seconds: 20 } })
  const endsAt = (await service.call('GET', `/v1/keys/${rotated.key.id}`, { token })).body.expires_at
  t.equal((await life(rotated.plaintext_key)).exp, Math.floor(Date.parse(endsAt) / 1000), 'the old key of a rotation gives what ends with the overlap')
  const [successors, another] = [await life(body.plaintext_key), await life(body.plaintext_key)]
  t.same([successors.exp - successors.iat, another.exp - another.iat], [90, 90])
})

t.test('400: nothing is told of a key that is not good', async (t) => {
  const service = await startService(t)
  const token = await service.token()
  const revoked = await service.issue()
  const disabled = await service.issue()
  const expired = await service.issue({ mecha: 'old^acmecorp' })
  for (const { plaintext_key } of [revoked, disabled, expired]) await exchanged(service, plaintext_key)
  await service.call('POST', `/v1/keys/${revoked.key.id}/revoke`, { token })
  await service.call('PATCH', `/v1/keys/${disabled.key.id}`, { token, body: { enabled: false } })
  await service.database.db.updateTable('keys').set({ expires_at: new Date() }).where('mecha', '=', 'old^acmecorp').execute()
  await applied(service.database)
  const jwt = await exchanged(service, (await service.issue()).plaintext_key)
  const keys = [
    'nonsense', revoked.plaintext_key, disabled.plaintext_key, expired.plaintext_key, jwt, await service.gateway(), token, `${disabled.plaintext_key} `,
    makeToken('mecha', newId(), deriveRoot(randomBytes(32).toString('hex'))).text, makeToken('mecha', newId(), rootsOf(service.config.ROOT_SECRETS!)[0]).text,
  ]
  const [first, ...rest] = await Promise.all(keys.map((key) => exchange(service, key)))
  t.match(first, { status: 400, body: { error: 'invalid_request', code: 'invalid_subject_token' }, headers: { 'cache-control': 'no-store', 'content-type': /^application\/json/ } })
  for (const answer of rest) isSameAnswer(t, answer, first!, 'the same, whatever it was')
})

t.test('400: what is no exchange', async (t) => {
  const service = await startService(t)
  const { plaintext_key } = await service.issue()
  const form = { grant_type: EXCHANGE, subject_token: plaintext_key, subject_token_type: ACCESS_TOKEN }
  for (const [wrong, error] of [
    [{ grant_type: 'client_credentials' }, 'unsupported_grant_type'], [{ grant_type: '' }, 'unsupported_grant_type'], [{ grant_type: [EXCHANGE, EXCHANGE] }, 'invalid_request'],
    [{ subject_token: '' }, 'invalid_request'], [{ subject_token: [plaintext_key, plaintext_key] }, 'invalid_request'], [{ subject_token_type: '' }, 'invalid_request'],
    [{ subject_token_type: 'urn:ietf:params:oauth:token-type:id_token' }, 'invalid_request'], [{ requested_token_type: 'urn:ietf:params:oauth:token-type:refresh_token' }, 'invalid_request'],
    [{ actor_token: 'x', actor_token_type: ACCESS_TOKEN }, 'invalid_request'],
  ] as const) {
    const answer = await sendForm(service, '/v1/token', { ...form, ...wrong } as Form)
    t.match(answer, { status: 400, body: { error, error_description: /^[\x20-\x21\x23-\x5b\x5d-\x7e]+$/ } }, JSON.stringify(wrong).replaceAll(plaintext_key, '…'))
    t.notOk(answer.text.includes(plaintext_key))
  }
  t.match(await sendForm(service, '/v1/token', ''), { status: 400, body: { error: 'invalid_request' } })
  t.match(await service.call('POST', '/v1/token', { body: form }), { status: 415, body: { error: 'invalid_request' } })
  t.match(await exchange(service, plaintext_key, { requested_token_type: 'urn:ietf:params:oauth:token-type:jwt', client_id: 'x', unknown: '1' }), { status: 200, body: { issued_token_type: 'urn:ietf:params:oauth:token-type:jwt' } })
})

t.test('401: a client that says who it is has to be that client, though nobody has to say', async (t) => {
  const service = await startService(t)
  const { plaintext_key } = await service.issue()
  const gateways = await Promise.all(['acme', 'rival'].map(async (org) => {
    const { body } = await service.call('POST', '/v1/gateways', { token: await service.token({ org }), body: { name: 'edge' } })
    return { id: body.gateway.id as string, credential: body.plaintext_key as string }
  }))
  const form = { grant_type: EXCHANGE, subject_token: plaintext_key, subject_token_type: ACCESS_TOKEN }
  const ask = (authorization: string, more: Form = {}) => sendForm(service, '/v1/token', { ...form, ...more }, { authorization })
  const basic = (user: string, password: string) => `Basic ${Buffer.from(`${user}:${password}`).toString('base64')}`
  const [{ id, credential }, other] = gateways as [(typeof gateways)[0], (typeof gateways)[0]]
  for (const right of [basic(id, credential), basic(other.id, other.credential), `Bearer ${credential}`, ''])
    t.match(await ask(right), { status: 200, body: { token_type: 'Bearer' } }, right.slice(0, 6))

  const wrong = [
    basic('any-name', 'any-secret'), basic('any-name', ''), basic(id, `${credential}x`), basic(id, other.credential), basic('sales^acmecorp', plaintext_key), basic(credential, ''),
    'Basic', 'Basic !', `Bearer ${plaintext_key}`, `Digest ${credential}`, `DPoP ${credential}`,
  ]
  for (const authorization of wrong)
    t.match(await ask(authorization), {
      status: 401, body: { error: 'invalid_client', code: 'unauthenticated' },
      headers: { 'cache-control': 'no-store', 'content-type': /^application\/json/, 'www-authenticate': /Basic realm="mecha-keys"/ },
    }, authorization.slice(0, 6))
  t.match(await ask(basic('any-name', 'any-secret'), { subject_token: 'nonsense' }), { status: 401, body: { error: 'invalid_client' } }, 'whatever the key is')
  await service.call('POST', `/v1/gateways/${id}/revoke`, { token: await service.token() })
  t.match(await ask(basic(id, credential)), { status: 401, body: { error: 'invalid_client' } }, 'one that was revoked')
})

t.test('429: one address, and one key, can exchange so often in a minute', async (t) => {
  const service = await startService(t, { TOKEN_RATE: '6', TOKEN_RATE_PER_KEY: '3' })
  const [key, other] = await Promise.all([service.issue(), service.issue({ mecha: 'buyer^acmecorp' })])
  const refused = { status: 429, body: { error: 'temporarily_unavailable', code: 'rate_limited' }, headers: { 'content-type': /^application\/json/, 'cache-control': 'no-store', 'retry-after': /^([1-9]|[1-5]\d|60)$/ } }
  const from = async (remoteAddress: string, subject_token: string): Promise<Pick<Answer, 'status' | 'headers' | 'body'>> => {
    const { statusCode: status, headers, body } = await service.app.inject({
      method: 'POST', url: '/v1/token', remoteAddress, headers: { 'content-type': 'application/x-www-form-urlencoded' },
      payload: new URLSearchParams({ grant_type: EXCHANGE, subject_token, subject_token_type: ACCESS_TOKEN }).toString(),
    })
    return { status, headers, body: JSON.parse(body) }
  }
  for (let i = 0; i < 10; i++) t.equal((await from(`203.0.113.${i}`, `${key.plaintext_key.slice(0, -20)}${'0'.repeat(20)}`)).status, 400, 'what is no key counts for none')
  for (let i = 0; i < 3; i++) t.equal((await from(`198.51.100.${i}`, key.plaintext_key)).status, 200)
  t.match(await from('198.51.100.9', key.plaintext_key), { ...refused, body: { ...refused.body, detail: /key/ } }, 'a key, wherever it comes from')
  t.match(await from('198.51.100.9', other.plaintext_key), { status: 200 }, 'and no other key')
  for (let i = 0; i < 6; i++) t.equal((await from('192.0.2.7', 'nonsense')).status, 400)
  t.match(await from('192.0.2.7', other.plaintext_key), { ...refused, body: { ...refused.body, detail: /address/ } }, 'an address, whatever it sends')
  t.equal((await from('192.0.2.8', other.plaintext_key)).status, 200, 'and no other address')
  for (let i = 0; i < 6; i++) await from(`2001:db8::${i}`, 'nonsense')
  t.equal((await from('2001:db8::ffff', other.plaintext_key)).status, 429, 'the addresses of one network of IPv6 are one')
})

t.test('a known key costs no query and no argon2, and neither does a forged one', async (t) => {
  const service = await startService(t)
  await fresh(service)
  const { plaintext_key } = await service.issue()
  await exchanged(service, plaintext_key)
  const foreign = deriveRoot(randomBytes(32).toString('hex'))
  let [known, after] = [await costs(service), await costs(service)]
  // What a service looks at now and then is a query too, and may fall into one of these rounds: not into all of them.
  await eventually(async () => {
    known = await costs(service)
    for (let i = 0; i < 10; i++) {
      await exchanged(service, plaintext_key)
      for (const one of [makeToken('mecha', newId(), foreign).text, `${plaintext_key}x`, 'nonsense']) t.equal((await exchange(service, one)).status, 400)
    }
    after = await costs(service)
    return after.queries === known.queries
  })
  t.same(after, known)
})

t.test('an exchange is a use of the key', async (t) => {
  const service = await startService(t)
  const { key, plaintext_key } = await service.issue()
  await exchanged(service, plaintext_key)
  t.match((await service.call('GET', `/v1/keys/${key.id}`, { token: await service.token() })).body.first_used_at, /^\d{4}-/)
})

t.test('503: with the database away, known keys are exchanged for as long as they are verified, and nothing after', async (t) => {
  const direct = await createDatabase(t)
  const wire = await layWire(t, direct.control)
  const bound = { REVOCATION_MAX_STALENESS: '1s', DATABASE_TIMEOUT: '1s', PUBLIC_URL: 'https://keys.example.com' }
  const service = await startService(t, bound, { ...direct, control: wire.through(direct.control), runtime: wire.through(direct.runtime) })
  await fresh(service)
  const [known, unknown] = [await service.issue(), await service.issue()]
  const gateway = await service.gateway()
  const jwt = await exchanged(service, known.plaintext_key)
  t.match(await introspect(service, gateway, jwt), { active: true })
  wire.cut()
  t.match(await exchange(service, unknown.plaintext_key), { status: 503, headers: { 'retry-after': '1', 'cache-control': 'no-store' }, body: { error: 'temporarily_unavailable', code: 'database_unavailable' } })
  let last: Answer
  await eventually(async () => (last = await exchange(service, known.plaintext_key)).status !== 200)
  t.match(last!, { status: 503, headers: { 'retry-after': '1' }, body: { error: 'temporarily_unavailable', code: 'feed_stale' } })
  t.match(await sendForm(service, '/v1/introspect', { token: jwt }, { authorization: `Bearer ${gateway}` }), { status: 503, body: { error: 'temporarily_unavailable' } }, 'nothing vouches for the key behind a JWT either')
  wire.restore()
  await eventually(async () => (await exchange(service, unknown.plaintext_key)).status === 200)
})

t.test('what is signed names the key of the set, and the algorithm of that key', async (t) => {
  const service = await startService(t)
  const header = decodeProtectedHeader(await exchanged(service, (await service.issue()).plaintext_key))
  const { body } = await service.call('GET', '/.well-known/jwks.json')
  t.match(body.keys, [{ kid: header.kid, alg: 'EdDSA', kty: 'OKP', crv: 'Ed25519', use: 'sig' }])
  t.notOk('d' in body.keys[0], 'the private part is not in it')
  t.same(Object.keys(body.keys[0]).sort(), ['alg', 'crv', 'kid', 'kty', 'use', 'x'])
})
