import t from 'tap'
import { isSameAnswer, NOTHING } from '../helpers/refusals.js'
import { startService, type Answer, type CallOptions } from '../helpers/service.js'

const service = await startService(t)
const all = await service.token()
const narrowed = await service.token({ crews: ['acmecorp'] })
const none = await service.token({ crews: [] })
const ours = (await service.issue({ mecha: 'sales^acmecorp' })).key
const theirs = (await service.issue({ mecha: 'sales^globex' })).key
const neighbours = (await service.issue({ mecha: 'acmecorp^acmecorp2' })).key
await service.gateway()

t.test('an operator of some crews does there what they could do everywhere', async (t) => {
  const token = narrowed
  const issued = await service.call('POST', '/v1/keys', { token, body: { mecha: 'support^acmecorp' } })
  t.equal(issued.status, 201)
  const { id } = issued.body.key
  t.match((await service.call('GET', `/v1/keys/${id}`, { token })).body, { id, status: 'active' })
  t.match((await service.call('PATCH', `/v1/keys/${id}`, { token, body: { name: 'nightly' } })).body, { name: 'nightly' })
  const rotated = await service.call('POST', `/v1/keys/${id}/rotate`, { token })
  t.equal(rotated.status, 201)
  t.match((await service.call('POST', `/v1/keys/${id}/revoke`, { token })).body, { status: 'revoked' })
  t.same((await service.call('POST', '/v1/mechas/support%5Eacmecorp/revoke-keys', { token })).body.revoked, [rotated.body.key.id])
  const { events } = (await service.call('GET', '/v1/events?mecha=support%5Eacmecorp', { token })).body
  t.same(events.map(({ type }: { type: string }) => type), ['key.issued', 'key.updated', 'key.rotated', 'key.issued', 'key.revoked', 'key.revoked'])
})

t.test('what belongs to other crews is, to the byte, what does not exist', async (t) => {
  for (const [token, key, mecha] of [[narrowed, theirs, 'sales%5Eglobex'], [narrowed, neighbours, 'acmecorp%5Eacmecorp2'], [none, ours, 'sales%5Eacmecorp']] as const) {
    const ask = (method: 'GET' | 'POST' | 'PATCH', url: string, body?: object): Promise<Answer> =>
      service.call(method, url, { token, ...(body && { body }) } satisfies CallOptions)
    const nothing = await ask('GET', `/v1/keys/${NOTHING.key}`)
    t.match(nothing, { status: 404, body: { code: 'not_found' } })
    for (const [id, what] of [[key.id, 'theirs'], [NOTHING.key, "nobody's"]]) {
      isSameAnswer(t, await ask('GET', `/v1/keys/${id}`), nothing, `get ${what}`)
      isSameAnswer(t, await ask('PATCH', `/v1/keys/${id}`, { name: 'x' }), nothing, `update ${what}`)
      isSameAnswer(t, await ask('POST', `/v1/keys/${id}/rotate`), nothing, `rotate ${what}`)
      isSameAnswer(t, await ask('POST', `/v1/keys/${id}/revoke`), nothing, `revoke ${what}`)
    }
    for (const [handle, what] of [[mecha, 'theirs'], [mecha.replace(/^\w+/, 'nobody'), "nobody's"]] as const) {
      isSameAnswer(t, await ask('POST', `/v1/mechas/${handle}/revoke-keys`), nothing, `the kill switch for ${what}`)
      isSameAnswer(t, await ask('POST', '/v1/keys', { mecha: decodeURIComponent(handle) }), nothing, `issue for ${what}`)
    }
  }
  for (const { id } of [ours, theirs, neighbours]) t.match((await service.call('GET', `/v1/keys/${id}`, { token: all })).body, { status: 'active', name: null, rotated_to: null }, 'nothing was touched')
})

t.test('an attempt to issue for another crew does not take its handle', async (t) => {
  t.equal((await service.call('POST', '/v1/keys', { token: narrowed, body: { mecha: 'new^initech' } })).status, 404)
  t.equal((await service.issue({ mecha: 'new^initech' }, { org: 'initech' })).key.org_id, 'initech')
})

t.test('an Idempotency-Key does not reach what its operator was narrowed away from', async (t) => {
  const request = { body: { mecha: 'once^globex' }, headers: { 'idempotency-key': 'once' } }
  const first = await service.call('POST', '/v1/keys', { token: all, ...request })
  t.equal(first.status, 201)
  t.equal((await service.call('POST', '/v1/keys', { token: narrowed, ...request })).status, 404)
  t.match(await service.verify(first.body.plaintext_key), { valid: true }, 'and its secret was not replaced')
})

t.test('lists and events show the crews of the token alone', async (t) => {
  const crewsIn = async (token: string, query = '') => {
    const { body } = await service.call('GET', `/v1/keys?limit=100${query}`, { token })
    return [...new Set(body.keys.map(({ mecha }: { mecha: string }) => mecha.split('^')[1]))].sort()
  }
  t.same(await crewsIn(all), ['acmecorp', 'acmecorp2', 'globex'])
  t.same(await crewsIn(narrowed), ['acmecorp'])
  t.same(await crewsIn(await service.token({ crews: ['acmecorp', 'globex'] })), ['acmecorp', 'globex'])
  t.same(await crewsIn(none), [])
  t.same(await crewsIn(narrowed, '&mecha=sales%5Eglobex'), [])

  const eventsIn = async (token: string, query = '') => (await service.call('GET', `/v1/events?limit=100${query}`, { token })).body.events
  const crewsOf = (events: { mecha: string | null }[]) => [...new Set(events.map(({ mecha }) => mecha?.split('^')[1] ?? 'none'))].sort()
  t.same(crewsOf(await eventsIn(all)), ['acmecorp', 'acmecorp2', 'globex', 'none'], 'none: those of gateways')
  t.same(crewsOf(await eventsIn(narrowed)), ['acmecorp'])
  t.same(await eventsIn(none), [])
  t.same(await eventsIn(narrowed, `&key_id=${theirs.id}`), [])
  t.same(await eventsIn(narrowed, '&mecha=sales%5Eglobex'), [])
  t.same(await eventsIn(narrowed, '&type=gateway.created'), [])
})

t.test('a cursor or a position of somebody else shows nothing more', async (t) => {
  const { next_cursor } = (await service.call('GET', '/v1/keys?limit=1', { token: all })).body
  const { keys } = (await service.call('GET', `/v1/keys?limit=100&cursor=${next_cursor}`, { token: narrowed })).body
  t.ok(keys.length > 0)
  t.same(keys.filter(({ mecha }: { mecha: string }) => !mecha.endsWith('^acmecorp')), [])
})

t.test('gateways are not for an operator of some crews', async (t) => {
  const [gateway] = (await service.call('GET', '/v1/gateways', { token: all })).body.gateways
  for (const token of [narrowed, none]) {
    const answers = [
      await service.call('GET', '/v1/gateways', { token }),
      await service.call('POST', '/v1/gateways', { token, body: { name: 'mine' } }),
      await service.call('POST', `/v1/gateways/${gateway.id}/revoke`, { token }),
      await service.call('POST', `/v1/gateways/${NOTHING.gateway}/revoke`, { token }),
    ]
    for (const answer of answers) t.match(answer, { status: 403, body: { code: 'crews_restricted' } })
    isSameAnswer(t, answers[2]!, answers[3]!, 'whether the gateway exists or not')
  }
  const { gateways } = (await service.call('GET', '/v1/gateways', { token: all })).body
  t.ok(gateways.length > 0)
  t.notMatch(gateways, [{ name: 'mine' }])
  for (const one of gateways) t.equal(one.status, 'active')
})
