import t, { type Test } from 'tap'
import { createHasher } from '../../../src/credentials/hash-queue.js'
import { createGateway } from '../../../src/control/gateways/create.js'
import { newId, publicId } from '../../../src/credentials/id.js'
import { rootsOf } from '../../../src/credentials/roots.js'
import { makeToken, parseToken } from '../../../src/credentials/token.js'
import { contractOf, operationsOf } from '../../helpers/contract.js'
import { applied, createDatabase } from '../../helpers/database.js'
import { listen } from '../../helpers/events.js'
import { costs } from '../../helpers/metrics.js'
import { ACCESS_TOKEN, EXCHANGE, exchanged, sendForm } from '../../helpers/oauth.js'
import { isSameAnswer, NOTHING } from '../../helpers/refusals.js'
import { fresh, startService, type Answer } from '../../helpers/service.js'

const service = await startService(t, {}, await createDatabase(t))
const { database, config } = service
const roots = rootsOf(config.ROOT_SECRETS!)
const globex = { org: 'globex' }
const acmes = await service.issue({ mecha: 'sales^acmecorp', scopes: ['orders:read'] })
const globexs = await service.issue({ mecha: 'sales^globexcrew', scopes: ['orders:read'] }, globex)
const gatewayOfAcme = await service.gateway()

t.test('a gateway credential authenticates a gateway', async (t) => {
  t.match(await service.verify(acmes.plaintext_key, {}, gatewayOfAcme), { valid: true, org_id: 'acme' })
})

t.test('nothing else does', async (t) => {
  const { id, prefix } = parseToken(gatewayOfAcme)!
  const cases: Record<string, string> = {
    'an operator token': await service.token(),
    'a Mecha key': acmes.plaintext_key,
    'a credential with another character': gatewayOfAcme.slice(0, 60) + (gatewayOfAcme[60] === 'a' ? 'b' : 'a') + gatewayOfAcme.slice(61),
    'a credential cut short': gatewayOfAcme.slice(0, -1),
    'a credential with a character more': `${gatewayOfAcme}0`,
    'the id of a gateway under another secret': makeToken(prefix, id, roots[0]).text,
    'a well-formed credential of no gateway': makeToken(prefix, newId(), roots[0]).text,
    'a credential that was made elsewhere': makeToken(prefix, id, rootsOf(['another root secret than the one here'])[0]).text,
    'a Mecha key under the prefix of gateways': makeToken(prefix, parseToken(acmes.plaintext_key)!.id, roots[0]).text,
    'a long word': 'x'.repeat(8000),
  }
  const garbage = await verify('garbage')
  for (const [what, credential] of Object.entries(cases)) {
    const answer = await verify(credential)
    isRefused(t, answer, what)
    isSameAnswer(t, answer, garbage, `${what}: and no word of what is wrong with it`)
  }
})

t.test('what is good as something else costs no query when it is presented again', async (t) => {
  const one = await startService(t, { ROOT_SECRETS: config.ROOT_SECRETS!.join(), USAGE_FLUSH_INTERVAL: '1h' }, database)
  await fresh(one)
  const asGateway = () => one.call('POST', '/v1/verify', { token: acmes.plaintext_key, body: { key: acmes.plaintext_key } })
  const asKey = () => one.verify(gatewayOfAcme, {}, gatewayOfAcme)
  t.match(await one.verify(acmes.plaintext_key, {}, gatewayOfAcme), { valid: true })
  t.match([(await asGateway()).status, await asKey()], [401, { valid: false, code: 'unknown' }])
  const before = await costs(one)
  for (let time = 0; time < 10; time++) t.match([(await asGateway()).status, await asKey()], [401, { valid: false, code: 'unknown' }])
  t.same(await costs(one), before)
})

t.test('a gateway credential comes as a bearer token', async (t) => {
  for (const authorization of ['', 'Bearer', 'Bearer ', gatewayOfAcme, `Basic ${gatewayOfAcme}`, `Bearer ${gatewayOfAcme} x`, `Bearer x ${gatewayOfAcme}`]) {
    const answer = await service.call('POST', '/v1/verify', { body: { key: acmes.plaintext_key }, headers: { authorization } })
    t.match(answer, { status: 401, headers: { 'www-authenticate': 'Bearer realm="mecha-keys"' }, body: { code: 'unauthenticated' } }, authorization.replace(gatewayOfAcme, '<credential>'))
  }
})

t.test('a revoked gateway credential is refused', async (t) => {
  const gateway = await service.gateway()
  t.equal((await verify(gateway)).status, 200)
  const id = publicId('gateway', parseToken(gateway)!.id)
  t.equal((await service.call('POST', `/v1/gateways/${id}/revoke`, { token: await service.token() })).status, 200)
  isRefused(t, await verify(gateway), 'revoked')
})

t.test("another organization's keys are unknown to a gateway, whatever became of them", async (t) => {
  const gatewayOfGlobex = await service.gateway(globex)
  const never = { status: 200, body: { valid: false, code: 'unknown' } }
  const unknown = await verify(gatewayOfAcme, makeToken(config.KEY_PREFIX, newId(), roots[0]).text)
  t.match(unknown, never)
  t.match(await verify(gatewayOfGlobex, acmes.plaintext_key), never)
  const isUnknown = async (what: string, demand = {}) => isSameAnswer(t, await verify(gatewayOfAcme, globexs.plaintext_key, demand), unknown, what)
  await isUnknown('active')
  await isUnknown('with another Mecha', { mecha: 'sales^acmecorp' })
  await isUnknown('with a scope that it lacks', { scopes: ['orders:write'] })
  const token = await service.token(globex)
  t.equal((await service.call('PATCH', `/v1/keys/${globexs.key.id}`, { token, body: { enabled: false } })).status, 200)
  await isUnknown('disabled')
  t.equal((await service.call('GET', `/v1/keys/${globexs.key.id}`, { token })).body.first_used_at, null, 'and that was not a use')
  t.equal((await service.call('PATCH', `/v1/keys/${globexs.key.id}`, { token, body: { enabled: true } })).status, 200)
  t.match(await service.verify(globexs.plaintext_key, {}, gatewayOfGlobex), { valid: true, org_id: 'globex' }, 'its own gateway knows it')
})

t.test('a gateway of all organizations verifies the keys of each', async (t) => {
  const gateway = await gatewayOf(null)
  t.match(await service.verify(acmes.plaintext_key, {}, gateway), { valid: true, org_id: 'acme' })
  t.match(await service.verify(globexs.plaintext_key, {}, gateway), { valid: true, org_id: 'globex' })
})

t.test('a gateway of all organizations is in reach of none of their operators', async (t) => {
  const id = publicId('gateway', parseToken(await gatewayOf(null))!.id)
  for (const org of ['acme', '*', 'null', 'undefined']) {
    const token = await service.token({ org })
    t.equal((await service.call('POST', `/v1/gateways/${id}/revoke`, { token })).status, 404)
    t.notOk((await service.call('GET', '/v1/gateways?limit=100', { token })).text.includes(id))
    t.notOk((await service.call('GET', '/v1/events?limit=100', { token })).text.includes(id))
  }
})

t.test('a gateway whose row is moved to another organization by hand is refused', async (t) => {
  const moves: [from: string | null, to: string | null][] = [['acme', 'globex'], ['acme', null], ['acme', '*'], [null, 'acme'], [null, '*'], ['*', null], ['acme', 'acme2']]
  for (const [from, to] of moves) {
    const gateway = await gatewayOf(from)
    t.equal((await verify(gateway)).status, 200)
    await move(gateway, to)
    isRefused(t, await verify(gateway), `from ${from} to ${to}`)
    await move(gateway, from)
    t.equal((await verify(gateway)).status, 200, 'back where it was, it works again')
  }
})

t.test('with a gateway credential: what can be had at each route, and of which keys', async (t) => {
  const app = (await startService(t, { ROOT_SECRETS: config.ROOT_SECRETS!.join() }, database)).app
  const url = await app.listen({ host: '127.0.0.1', port: 0 })
  const [ours, theirs] = [await holding(acmes, gatewayOfAcme), await holding(globexs, await service.gateway(globex))]
  const nothing: Held = { id: publicId('mecha', newId()), key: makeToken(config.KEY_PREFIX, newId(), roots[0]).text, jwt: 'a.b.c', version: ours.version }
  const bearer = { authorization: `Bearer ${gatewayOfAcme}` }
  const post = (path: string, body: object) => service.call('POST', path, { body, headers: bearer })
  const inAMinute = () => new Date(Date.now() + 60_000).toISOString()

  /** What a gateway is told of a key, and what is told of its own organization's. Of every other key it is told what is told of none. */
  const asked = (ask: (about: Held) => Promise<Answer>, ofOurs: object) => ({ ask, ofOurs })
  const REFUSED = 'it takes an operator', OPEN = 'it asks nobody who they are'
  const IDENTITY = { key_id: ours.id, mecha: { handle: 'sales^acmecorp', name: 'sales', crew: 'acmecorp' }, org_id: 'acme', scopes: ['orders:read'], metadata: {}, expires_at: null }
  const ACTIVE = { status: 200, body: { active: true, key_id: ours.id, org_id: 'acme' } }
  const REACH: Record<string, typeof REFUSED | typeof OPEN | ReturnType<typeof asked> | (() => Promise<void>)> = {
    'POST /v1/keys': REFUSED,
    'GET /v1/keys': REFUSED,
    'GET /v1/keys/{id}': REFUSED,
    'PATCH /v1/keys/{id}': REFUSED,
    'POST /v1/keys/{id}/rotate': REFUSED,
    'POST /v1/keys/{id}/revoke': REFUSED,
    'POST /v1/mechas/{mecha}/revoke-keys': REFUSED,
    'POST /v1/gateways': REFUSED,
    'GET /v1/gateways': REFUSED,
    'POST /v1/gateways/{id}/revoke': REFUSED,
    'GET /v1/events': REFUSED,
    'POST /v1/verify': asked(({ key }) => post('/v1/verify', { key }), { status: 200, text: JSON.stringify({ valid: true, ...IDENTITY }) }),
    'POST /v1/verify/batch': asked(({ key }) => post('/v1/verify/batch', { keys: [{ key }] }), { status: 200, text: JSON.stringify({ results: [{ valid: true, ...IDENTITY }] }) }),
    'POST /v1/introspect': async () => {
      for (const token of ['key', 'jwt'] as const) await isTold(asked((about) => sendForm(service, '/v1/introspect', { token: about[token] }, bearer), ACTIVE), `introspection of a ${token}`)
    },
    'GET /v1/authz': asked(({ key }) => service.call('GET', '/v1/authz', { headers: { 'x-gateway-authorization': bearer.authorization, 'x-mecha-key': key } }), { status: 200, headers: { 'x-mecha-key-id': ours.id, 'x-mecha-org': 'acme' } }),
    // Whose key has this id is not told: that it is one of this organization is.
    'POST /v1/nonces': asked(({ id }) => post('/v1/nonces', { key_id: id, nonce: 'n'.repeat(22), expires_at: inAMinute() }), { status: 201, text: '{}' }),
    'POST /v1/usage': asked(({ id }) => post('/v1/usage', { uses: [{ key_id: id, used_at: '2020-01-31T12:00:00Z' }] }), { status: 202, text: '{}' }),
    'POST /v1/revalidate': async () => {
      for (const [about, changed] of [[ours, []], [theirs, [theirs.id]], [nothing, [nothing.id]]] as const)
        t.same((await post('/v1/revalidate', { keys: [{ key_id: about.id, version: about.version }] })).body, { changed })
    },
    'GET /v1/changes': async () => {
      const stream = await listen(t, url, gatewayOfAcme)
      t.equal(stream.status, 200)
      await stream.heard('confirmed')
      const [mine, others] = [await service.issue(), await service.issue({ mecha: 'sales^globexcrew' }, globex)]
      for (const [{ key }, of] of [[others, globex], [mine, {}]] as const)
        t.equal((await service.call('PATCH', `/v1/keys/${key.id}`, { token: await service.token(of), body: { name: 'other' } })).status, 200)
      await stream.heard('changed', ({ key_ids }) => key_ids.includes(mine.key.id))
      t.notOk(JSON.stringify(stream.events).includes(others.key.id))
    },
    'POST /v1/revoke-token': OPEN,
    'POST /v1/token': async () => {
      const told = (subject: string, headers: Record<string, string>) => sendForm(service, '/v1/token', { grant_type: EXCHANGE, subject_token: subject, subject_token_type: ACCESS_TOKEN }, headers)
      isSameAnswer(t, await told(gatewayOfAcme, bearer), await told(nothing.key, {}), 'it is exchanged for nothing')
    },
    'GET /.well-known/oauth-authorization-server': OPEN,
    'GET /.well-known/jwks.json': OPEN,
    'GET /.well-known/token-status': OPEN,
    'GET /livez': OPEN,
    'GET /readyz': OPEN,
  }
  const operations = operationsOf(contractOf())
  t.same(operations.map(({ name }) => name).sort(), Object.keys(REACH).sort(), 'of a new route it has to be said here what it tells a gateway')
  for (const { name, method, path } of operations) {
    const reach = REACH[name]!
    const at = path.replace('{mecha}', 'sales%5Eacmecorp').replace('{id}', path.includes('gateways') ? NOTHING.gateway : ours.id)
    if (typeof reach === 'function') await reach()
    else if (typeof reach === 'object') await isTold(reach, name)
    else {
      const call = (headers: Record<string, string>) => service.call(method as 'GET', at, { headers, ...(method !== 'GET' && { body: {} }) })
      const answer = await call(bearer)
      if (reach === REFUSED) t.equal(answer.status, 401, name)
      isSameAnswer(t, answer, await call(reach === REFUSED ? { authorization: 'Bearer garbage' } : {}), `${name} as without a credential`)
    }
  }

  async function isTold({ ask, ofOurs }: ReturnType<typeof asked>, what: string): Promise<void> {
    t.match(await ask(ours), ofOurs, `${what} of our own`)
    isSameAnswer(t, await ask(theirs), await ask(nothing), `${what} of another organization's`)
  }

  /** What somebody has who holds a key of an organization, and what its gateways are told of it. */
  async function holding({ key, plaintext_key }: Awaited<ReturnType<typeof service.issue>>, gateway: string): Promise<Held> {
    const { headers } = await service.call('POST', '/v1/verify', { token: gateway, body: { key: plaintext_key }, headers: { prefer: 'freshness' } })
    return { id: key.id, key: plaintext_key, jwt: await exchanged(service, plaintext_key), version: String(headers['x-key-version']) }
  }
})

interface Held {
  readonly id: string
  readonly key: string
  readonly jwt: string
  readonly version: string
}

/** As the command line makes it: for any organization, or for all. */
async function gatewayOf(orgId: string | null): Promise<string> {
  const parts = { db: database.db, roots, config, hasher: createHasher({ profile: config.HASH_PROFILE, version: async () => 2, queueSize: 10, onDone: () => {} }) }
  const caller = { actor: 'cli', orgId, crews: undefined, requestId: 'cli', address: '' }
  return (await createGateway(parts, caller, 'edge')).plaintext
}

async function move(gateway: string, orgId: string | null): Promise<void> {
  await database.db.updateTable('keys').set({ org_id: orgId }).where('id', '=', parseToken(gateway)!.id).execute()
  await applied(database)
}

function verify(credential: string, key = acmes.plaintext_key, demand = {}): Promise<Answer> {
  return service.call('POST', '/v1/verify', { token: credential, body: { key, ...demand } })
}

function isRefused(t: Test, { status, headers, body }: Answer, what: string): void {
  const challenge = 'Bearer realm="mecha-keys", error="invalid_token"'
  t.match({ status, challenge: headers['www-authenticate'], code: body.code }, { status: 401, challenge, code: 'unauthenticated' }, what)
}
