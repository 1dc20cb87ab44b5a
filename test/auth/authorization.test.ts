import t from 'tap'
import { SCOPES, type Scope } from '../../src/auth/scopes.js'
import { createGateway } from '../../src/control/gateways.js'
import { requireRoots } from '../../src/config.js'
import { openDatabase } from '../../src/db/pool.js'
import { createMetrics } from '../../src/http/metrics.js'
import { startService, type Answer, type Service } from '../helpers/service.js'

const NONE = 'key_01jd9p5v3fe8rr2k7m4q9wx0zt'

/** Every call of the control plane, about a key and a Mecha, with the scope that it needs. */
const calls = (id: string, mecha: string, gateway = 'gw_01jd9p5v3fe8rr2k7m4q9wx0zt'): ['GET' | 'POST' | 'PATCH', string, Scope, object?][] => [
  ['POST', '/v1/keys', 'keys:issue', { mecha }],
  ['GET', '/v1/keys', 'keys:read'],
  ['GET', `/v1/keys/${id}`, 'keys:read'],
  ['PATCH', `/v1/keys/${id}`, 'keys:issue', { name: 'x' }],
  ['POST', `/v1/keys/${id}/rotate`, 'keys:issue', {}],
  ['POST', `/v1/keys/${id}/revoke`, 'keys:revoke', {}],
  ['POST', `/v1/mechas/${encodeURIComponent(mecha)}/revoke-keys`, 'keys:revoke', {}],
  ['GET', '/v1/events', 'audit:read'],
  ['POST', '/v1/gateways', 'gateways:manage', { name: 'x' }],
  ['GET', '/v1/gateways', 'gateways:manage'],
  ['POST', `/v1/gateways/${gateway}/revoke`, 'gateways:manage', {}],
]

/** All of an answer but what is each request's own. */
const whole = ({ status, text, headers }: Answer) => {
  const { date: _date, 'x-request-id': _id, ...rest } = headers
  return JSON.stringify({ status, text, rest })
}

t.test('the calls of this file are all that there are', async (t) => {
  const service = await startService(t)
  const paths = Object.entries(service.app.swagger().paths ?? {}).filter(([path]) => path.startsWith('/v1/') && path !== '/v1/verify')
  const documented = paths.flatMap(([path, methods]) => Object.keys(methods as object).map((method) => `${method.toUpperCase()} ${path}`))
  const here = calls('{id}', 'x', '{id}').map(([method, url]) => `${method} ${url.replace('/x/', '/{mecha}/')}`)
  t.same(here.sort(), documented.sort())
})

t.test('401: nothing is answered without a credential, and what kind is wanted is said', async (t) => {
  const service = await startService(t)
  for (const [method, url, , body] of [...calls(NONE, 'sales^acmecorp'), ['POST', '/v1/verify', 'keys:read', { key: 'x' }] as const]) {
    const answer = await service.call(method, url, body ? { body } : {})
    t.match(answer, { status: 401, headers: { 'www-authenticate': 'Bearer realm="mecha-keys"', 'content-type': 'application/problem+json' }, body: { code: 'unauthenticated' } }, `${method} ${url}`)
  }
})

t.test('403: every call needs its own scope and no other', async (t) => {
  const service = await startService(t)
  for (const [method, url, scope, body] of calls(NONE, 'sales^acmecorp')) {
    const ask = async (scopes: readonly Scope[]) => service.call(method, url, { token: await service.token({ scopes }), ...(body && { body }) })
    const without = await ask(SCOPES.filter((one) => one !== scope))
    t.match(without, { status: 403, body: { code: 'insufficient_scope' }, headers: { 'www-authenticate': `Bearer realm="mecha-keys", error="insufficient_scope", scope="${scope}"` } }, `${method} ${url}`)
    t.notMatch(await ask([scope]), { status: /401|403/ }, `${method} ${url} with ${scope}`)
  }
})

/** Asks for somebody else's and for nobody's, and holds the answers against each other to the byte. */
async function sameAsNothing(t: Tap, service: Service, token: string, theirs: { id: string; mecha: string; gateway?: string }): Promise<void> {
  const ask = ([method, url, , body]: ReturnType<typeof calls>[number]) => service.call(method, url, { token, ...(body && { body }) })
  const others = calls(theirs.id, theirs.mecha, theirs.gateway)
  const nobodys = calls(NONE, 'nobody^nowhere')
  for (const i of [2, 3, 4, 5, 6, ...(theirs.gateway ? [10] : [])]) {
    const [found, missing] = [await ask(others[i]!), await ask(nobodys[i]!)]
    t.equal(found.status, 404, `${others[i]![0]} ${others[i]![1]}`)
    t.equal(whole(found), whole(missing), 'to the byte')
  }
  const issued = await ask(others[0]!)
  t.equal(whole(issued), whole(await ask(nobodys[2]!)), 'an issue for their Mecha')
}
type Tap = typeof t

t.test("another organization's things answer as if there were none", async (t) => {
  const service = await startService(t)
  const { key, plaintext_key } = await service.issue()
  await service.gateway()
  const [{ id: gateway }] = (await service.call('GET', '/v1/gateways', { token: await service.token() })).body.gateways
  const token = await service.token({ org: 'rival' })
  await sameAsNothing(t as never, service, token, { id: key.id, mecha: 'sales^acmecorp', gateway })
  t.same((await service.call('GET', '/v1/keys', { token })).body.keys, [])
  t.same((await service.call('GET', '/v1/keys?mecha=sales%5Eacmecorp', { token })).body.keys, [])
  t.same((await service.call('GET', '/v1/events', { token })).body.events, [])
  t.same((await service.call('GET', `/v1/events?key_id=${key.id}`, { token })).body.events, [])
  t.same((await service.call('GET', '/v1/gateways', { token })).body.gateways, [])
  t.match(await service.verify(plaintext_key), { valid: true }, 'and nothing happened to them')
})

t.test('how long the answer takes tells nothing either', async (t) => {
  const service = await startService(t)
  const { key } = await service.issue()
  const token = await service.token({ org: 'rival' })
  const times: [number[], number[]] = [[], []]
  for (let i = 0; i < 120; i++) {
    const start = performance.now()
    await service.call('GET', `/v1/keys/${i % 2 ? key.id : NONE}`, { token })
    times[i % 2]!.push(performance.now() - start)
  }
  const [none, theirs] = times.map((list) => list.toSorted((a, b) => a - b)[30]!) as [number, number]
  t.ok(theirs / none > 1 / 5 && theirs / none < 5, `medians of ${theirs.toFixed(2)} and ${none.toFixed(2)} ms`)
})

t.test('an operator of some crews reaches those and sees nothing of others', async (t) => {
  const service = await startService(t)
  const mine = await service.issue({ mecha: 'sales^acmecorp' })
  const theirs = await service.issue({ mecha: 'sales^seoul_cafe' })
  const identity = { crews: ['acmecorp'] }
  const token = await service.token(identity)
  await sameAsNothing(t as never, service, token, { id: theirs.key.id, mecha: 'sales^seoul_cafe' })
  t.match(await service.verify(theirs.plaintext_key), { valid: true })
  for (const [method, url, , body] of calls(mine.key.id, 'sales^acmecorp').slice(0, 8)) {
    const { status } = await service.call(method, url, { token, ...(body && { body }) })
    t.ok(status === 200 || status === 201, `${method} ${url}: ${status}`)
  }
  const keys = (await service.call('GET', '/v1/keys', { token })).body.keys
  t.ok(keys.length >= 2 && keys.every((key: any) => key.mecha === 'sales^acmecorp'))
  const events = (await service.call('GET', '/v1/events', { token })).body.events
  t.ok(events.length >= 2 && events.every((event: any) => event.mecha === 'sales^acmecorp'), 'gateways are not theirs either')
  for (const [method, url, , body] of calls(NONE, 'x^y').slice(8))
    t.match(await service.call(method, url, { token, ...(body && { body }) }), { status: 403, body: { code: 'crews_restricted' } }, `${method} ${url}`)
  const none = await service.token({ crews: [] })
  t.equal((await service.call('POST', '/v1/keys', { token: none, body: { mecha: 'sales^acmecorp' } })).status, 404)
  t.same((await service.call('GET', '/v1/keys', { token: none })).body.keys, [])
})

t.test('401: what is no living gateway credential', async (t) => {
  const service = await startService(t)
  const { plaintext_key } = await service.issue()
  const credential = await service.gateway()
  const ask = (token: string) => service.call('POST', '/v1/verify', { token, body: { key: plaintext_key } })
  t.match(await ask(credential), { status: 200, body: { valid: true } })
  const last = credential.at(-1) === '0' ? '1' : '0'
  for (const [what, token] of Object.entries({
    "an operator's token": await service.token(), 'a Mecha key': plaintext_key, tampered: credential.slice(0, -1) + last, cut: credential.slice(0, -1), nonsense: 'nonsense',
  }))
    t.match(await ask(token), { status: 401, headers: { 'www-authenticate': 'Bearer realm="mecha-keys", error="invalid_token"' } }, what)
  t.match(await service.call('POST', '/v1/verify', { headers: { authorization: `Basic ${credential}` }, body: { key: plaintext_key } }), { status: 401 })
})

t.test('a gateway knows the keys of its organization, one of all organizations knows every key', async (t) => {
  const service = await startService(t)
  const db = openDatabase({ url: service.database.control, size: 1, timeoutMs: 10_000, name: 'test' })
  t.teardown(() => db.destroy())
  const parts = { db, config: service.config, roots: requireRoots(service.config), metrics: createMetrics({ process: false }) }
  const caller = { actor: 'cli:test', requestId: 'x', address: 'local', orgId: null, crews: undefined }
  const everywhere = (await createGateway(parts, caller, 'edge')).plaintext
  const rivals = await service.gateway({ org: 'rival' })
  const { key, plaintext_key } = await service.issue()
  t.match(await service.verify(plaintext_key, {}, everywhere), { valid: true, org_id: 'acme' })
  t.same(await service.verify(plaintext_key, {}, rivals), { valid: false, code: 'unknown' })
  await service.call('POST', `/v1/keys/${key.id}/revoke`, { token: await service.token() })
  t.same(await service.verify(plaintext_key, {}, rivals), { valid: false, code: 'unknown' }, 'not even that it was revoked')
  t.same(await service.verify(plaintext_key, {}, everywhere), { valid: false, code: 'revoked' })
  t.same((await service.call('GET', '/v1/gateways', { token: await service.token() })).body.gateways.length, 0, 'the platform\'s own is nobody\'s to list')
})

t.test('a gateway whose row was moved to another organization, or to all, by hand is refused', async (t) => {
  const service = await startService(t)
  for (const org_id of ['rival', null]) {
    const credential = await service.gateway()
    t.equal((await service.call('POST', '/v1/verify', { token: credential, body: { key: 'x' } })).status, 200)
    await service.database.db.updateTable('keys').set({ org_id }).where('kind', '=', 'gateway').where('org_id', '=', 'acme').execute()
    t.equal((await service.call('POST', '/v1/verify', { token: credential, body: { key: 'x' } })).status, 401)
  }
})
