import t from 'tap'
import { startService } from '../../helpers/service.js'

const NONE = 'key_01jd9p5v3fe8rr2k7m4q9wx0zt'

t.test('GET 200: metadata and never the key', async (t) => {
  const service = await startService(t)
  const token = await service.token()
  const { key, plaintext_key } = await service.issue({ name: 'x' })
  const { status, body, headers, text } = await service.call('GET', `/v1/keys/${key.id}`, { token })
  t.equal(status, 200)
  t.equal(headers['cache-control'], 'no-store')
  t.same(body, key)
  t.equal(text.includes(plaintext_key.slice(-60, -17)), false)
  t.equal(text.includes('argon2'), false)
})

t.test('GET 400 and 404', async (t) => {
  const service = await startService(t)
  const token = await service.token()
  t.match(await service.call('GET', '/v1/keys/nonsense', { token }), { status: 400, body: { errors: [{ field: 'path.id', rule: 'pattern' }] } })
  t.match(await service.call('GET', `/v1/keys/${NONE}`, { token }), { status: 404, body: { code: 'not_found' } })
})

t.test('use is recorded: the first at once, the last when it is flushed', async (t) => {
  const service = await startService(t)
  const token = await service.token()
  const { key, plaintext_key } = await service.issue()
  await service.verify(plaintext_key)
  const used = (await service.call('GET', `/v1/keys/${key.id}`, { token })).body
  t.match(used.first_used_at, /Z$/)
  await service.database.db.updateTable('key_usage').set({ first_used_at: new Date(0), last_used_at: new Date(0) }).execute()
  await service.verify(plaintext_key)
  await service.app.close()
  const row = await service.database.db.selectFrom('key_usage').select(['first_used_at', 'last_used_at']).where('last_used_at', '>', new Date(0)).executeTakeFirstOrThrow()
  t.same(row.first_used_at, new Date(0), 'the first use stays the first')
  t.ok(row.last_used_at > new Date(used.first_used_at), 'flushed on shutdown')
})

t.test('a refused key leaves no trace of use', async (t) => {
  const service = await startService(t)
  const token = await service.token()
  const { key, plaintext_key } = await service.issue()
  await service.verify(plaintext_key, { mecha: 'buyer^acmecorp' })
  await service.verify(plaintext_key, { scopes: ['x'] })
  t.match((await service.call('GET', `/v1/keys/${key.id}`, { token })).body, { first_used_at: null, last_used_at: null })
})
