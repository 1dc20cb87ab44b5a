import t from 'tap'
import { startService } from '../../helpers/service.js'

t.test('a gateway credential is revealed once, listed, used and revoked like a key', async (t) => {
  const service = await startService(t)
  const token = await service.token()
  const { plaintext_key } = await service.issue()
  const created = await service.call('POST', '/v1/gateways', { token, body: { name: 'edge-eu-1' } })
  t.equal(created.status, 201)
  t.equal(created.headers['cache-control'], 'no-store')
  t.match(created.body, { gateway: { id: /^gw_/, org_id: 'acme', name: 'edge-eu-1', status: 'active', created_by: 'builtin:alice', first_used_at: null }, plaintext_key: /^mgw_/ })
  const credential = created.body.plaintext_key
  t.match(await service.verify(plaintext_key, {}, credential), { valid: true })
  const listed = await service.call('GET', '/v1/gateways', { token })
  t.equal(listed.status, 200)
  t.match(listed.body, { gateways: [{ id: created.body.gateway.id, first_used_at: /Z$/ }], next_cursor: null })
  t.equal(listed.text.includes(credential), false)
  const revoke = () => service.call('POST', `/v1/gateways/${created.body.gateway.id}/revoke`, { token, body: { reason: 'retired' } })
  const revoked = await revoke()
  t.match(revoked, { status: 200, body: { status: 'revoked', revoke_reason: 'retired' } })
  t.same({ ...(await revoke()).body, propagation: null }, { ...revoked.body, propagation: null })
  t.match(await service.call('POST', '/v1/verify', { token: credential, body: { key: plaintext_key } }), { status: 401, headers: { 'www-authenticate': /invalid_token/ } })
  t.same((await service.call('GET', '/v1/gateways?status=active', { token })).body.gateways, [])
})

t.test('gateways and keys are kept apart', async (t) => {
  const service = await startService(t)
  const token = await service.token()
  await service.gateway()
  const [{ id }] = (await service.call('GET', '/v1/gateways', { token })).body.gateways
  t.same((await service.call('GET', '/v1/keys', { token })).body.keys, [])
  t.match(await service.call('GET', `/v1/keys/${id.replace('gw_', 'key_')}`, { token }), { status: 404 })
  t.match(await service.call('POST', `/v1/keys/${id.replace('gw_', 'key_')}/revoke`, { token }), { status: 404 })
})

t.test('gateways are paged', async (t) => {
  const service = await startService(t)
  const token = await service.token()
  for (const name of ['a', 'b', 'c']) await service.call('POST', '/v1/gateways', { token, body: { name } })
  const first = (await service.call('GET', '/v1/gateways?limit=2', { token })).body
  const second = (await service.call('GET', `/v1/gateways?limit=2&cursor=${first.next_cursor}`, { token })).body
  t.same([...first.gateways, ...second.gateways].map(({ name }) => name), ['c', 'b', 'a'])
  t.equal(second.next_cursor, null)
})

t.test('400 and 404', async (t) => {
  const service = await startService(t)
  const token = await service.token()
  t.match(await service.call('POST', '/v1/gateways', { token, body: {} }), { status: 400, body: { errors: [{ field: 'body.name' }] } })
  t.match(await service.call('POST', '/v1/gateways', { token, body: { name: 'x', org_id: 'rival' } }), { status: 400, body: { errors: [{ field: 'body.org_id' }] } })
  t.match(await service.call('GET', '/v1/gateways?mecha=a%5Eb', { token }), { status: 400 })
  t.match(await service.call('POST', '/v1/gateways/gw_01jd9p5v3fe8rr2k7m4q9wx0zt/revoke', { token }), { status: 404, body: { code: 'not_found' } })
})
