import t, { type Test } from 'tap'
import { createHasher } from '../../src/auth/hasher.js'
import { createGateway } from '../../src/control/gateways.js'
import { newId, publicId } from '../../src/key/id.js'
import { rootsOf } from '../../src/key/roots.js'
import { makeToken, parseToken } from '../../src/key/token.js'
import { applied } from '../helpers/database.js'
import { costs } from '../helpers/metrics.js'
import { isSameAnswer } from '../helpers/refusals.js'
import { fresh, startService, type Answer } from '../helpers/service.js'

const service = await startService(t)
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
