import t from 'tap'
import { createDatabase } from '../../helpers/database.js'
import { isSameAnswer, NOTHING } from '../../helpers/refusals.js'
import { startService, type Answer, type CallOptions } from '../../helpers/service.js'

const service = await startService(t, {}, await createDatabase(t))
const globex = { org: 'globex', subject: 'gus' }
const token = await service.token()
const theirToken = await service.token(globex)
const { key: theirs } = await service.issue({ mecha: 'sales^globexcrew', name: 'of globex' }, globex)
await service.gateway(globex)
const [theirGateway] = (await service.call('GET', '/v1/gateways', { token: theirToken })).body.gateways

/** Everything that can be tried on a key or a handle. */
const ATTEMPTS: Record<string, (id: string) => Promise<Answer>> = {
  get: (id) => ask('GET', `/v1/keys/${id}`),
  update: (id) => ask('PATCH', `/v1/keys/${id}`, { body: { name: 'x', enabled: false } }),
  rotate: (id) => ask('POST', `/v1/keys/${id}/rotate`),
  'rotate with an Idempotency-Key': (id) => ask('POST', `/v1/keys/${id}/rotate`, { headers: { 'idempotency-key': id } }),
  revoke: (id) => ask('POST', `/v1/keys/${id}/revoke`, { body: { reason: 'x' } }),
}

t.test("another organization's keys are, to the byte, what does not exist", async (t) => {
  const nothing = await ask('GET', `/v1/keys/${NOTHING.key}`)
  t.match(nothing, { status: 404, body: { code: 'not_found' } })
  for (const [what, attempt] of Object.entries(ATTEMPTS))
    for (const id of [theirs.id, NOTHING.key]) isSameAnswer(t, await attempt(id), nothing, `${what} ${id}`)
  for (const mecha of ['sales%5Eglobexcrew', 'nobody%5Enowhere'])
    isSameAnswer(t, await ask('POST', `/v1/mechas/${mecha}/revoke-keys`), nothing, `the kill switch for ${mecha}`)
  isSameAnswer(t, await ask('POST', '/v1/keys', { body: { mecha: 'sales^globexcrew' } }), nothing, 'issue for a handle')
  isSameAnswer(t, await ask('POST', '/v1/keys', { body: { mecha: 'sales^globexcrew' }, headers: { 'idempotency-key': 'x' } }), nothing, 'issue with an Idempotency-Key')
  for (const id of [theirGateway.id, NOTHING.gateway]) isSameAnswer(t, await ask('POST', `/v1/gateways/${id}/revoke`), nothing, `revoke ${id}`)
})

t.test('and no attempt changed any of it', async (t) => {
  t.same((await service.call('GET', `/v1/keys/${theirs.id}`, { token: theirToken })).body, theirs)
  t.match((await service.call('GET', '/v1/gateways', { token: theirToken })).body.gateways, [{ id: theirGateway.id, status: 'active' }])
  const { events } = (await service.call('GET', '/v1/events', { token: theirToken })).body
  t.same(events.map(({ type }: { type: string }) => type), ['key.issued', 'gateway.created'])
})

t.test('the ended keys of another organization answer as its living ones', async (t) => {
  const { key: revoked } = await service.issue({ mecha: 'ended^globexcrew' }, globex)
  await service.call('POST', `/v1/keys/${revoked.id}/revoke`, { token: theirToken })
  const nothing = await ask('GET', `/v1/keys/${NOTHING.key}`)
  for (const [what, attempt] of Object.entries(ATTEMPTS)) isSameAnswer(t, await attempt(revoked.id), nothing, what)
})

t.test('an id of the other kind is not found either', async (t) => {
  const nothing = await ask('GET', `/v1/keys/${NOTHING.key}`)
  const gateway = (await service.call('POST', '/v1/gateways', { token, body: { name: 'ours' } })).body.gateway
  const { key } = await service.issue({ mecha: 'sales^acmecorp' })
  isSameAnswer(t, await ask('GET', `/v1/keys/${gateway.id.replace('gw_', 'key_')}`), nothing, 'a gateway as a key')
  isSameAnswer(t, await ask('POST', `/v1/keys/${gateway.id.replace('gw_', 'key_')}/revoke`), nothing, 'a gateway revoked as a key')
  isSameAnswer(t, await ask('POST', `/v1/gateways/${key.id.replace('key_', 'gw_')}/revoke`), nothing, 'a key revoked as a gateway')
})

t.test('lists and events of one organization show nothing of another', async (t) => {
  await service.issue({ mecha: 'listed^acmecorp' })
  for (const url of ['/v1/keys', '/v1/gateways', '/v1/events']) {
    const { status, text } = await ask('GET', `${url}?limit=100`)
    t.equal(status, 200)
    t.match(text, /acmecorp|"ours"/, `${url} shows ours`)
    for (const word of ['globex', 'gus', theirs.id, theirGateway.id]) t.notOk(text.includes(word), `${url} has no ${word}`)
  }
  const isEmpty = async (url: string, nothing: string) => isSameAnswer(t, await ask('GET', url), await ask('GET', nothing), url)
  await isEmpty('/v1/keys?mecha=sales%5Eglobexcrew', '/v1/keys?mecha=nobody%5Enowhere')
  await isEmpty('/v1/events?mecha=sales%5Eglobexcrew', '/v1/events?mecha=nobody%5Enowhere')
  await isEmpty(`/v1/events?key_id=${theirs.id}`, `/v1/events?key_id=${NOTHING.key}`)
  await isEmpty(`/v1/events?key_id=${theirGateway.id}`, `/v1/events?key_id=${NOTHING.gateway}`)
})

t.test('organizations are told apart to the letter', async (t) => {
  for (const org of ['Globex', 'globe', 'globex2', 'globex%', '*', '_lobex'])
    t.equal((await service.call('GET', `/v1/keys/${theirs.id}`, { token: await service.token({ org }) })).status, 404, org)
})

t.test('what exists elsewhere takes about as long as what does not exist', async (t) => {
  for (const [what, attempt] of Object.entries(ATTEMPTS)) {
    const times: Record<string, number[]> = { [theirs.id]: [], [NOTHING.key]: [] }
    for (let i = 0; i < 41; i++)
      for (const [id, samples] of Object.entries(times)) {
        const start = performance.now()
        await attempt(id)
        samples.push(performance.now() - start)
      }
    // Wide, for a busy machine: an argon2 on one of the two sides would be out of it, a slow moment is not.
    const ratio = median(times[theirs.id]!) / median(times[NOTHING.key]!)
    t.ok(ratio > 0.2 && ratio < 5, `${what}: ${ratio.toFixed(2)}`)
  }
})

function ask(method: 'GET' | 'POST' | 'PATCH', url: string, options: CallOptions = {}): Promise<Answer> {
  return service.call(method, url, { token, ...options })
}

function median(samples: number[]): number {
  return samples.toSorted((a, b) => a - b)[samples.length >> 1]!
}
