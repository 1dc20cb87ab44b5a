import { sql } from 'kysely'
import t from 'tap'
import { eventually } from '../../helpers/eventually.js'
import { startService } from '../../helpers/service.js'

const NONE = 'key_01jd9p5v3fe8rr2k7m4q9wx0zt'

t.test('PATCH 200: name, metadata, end and enabled can be changed, and verify follows', async (t) => {
  const service = await startService(t)
  const token = await service.token()
  const { key, plaintext_key } = await service.issue({ name: 'x', metadata: { a: 1 } })
  const patch = (body: object) => service.call('PATCH', `/v1/keys/${key.id}`, { token, body })
  t.match(await patch({ name: 'y', metadata: { b: 2 }, expires_at: '2999-01-01T00:00:00+00:00' }), { status: 200, body: { id: key.id, name: 'y', metadata: { b: 2 }, expires_at: '2999-01-01T00:00:00.000Z' } })
  t.match(await service.verify(plaintext_key), { valid: true, metadata: { b: 2 }, expires_at: '2999-01-01T00:00:00.000Z' })
  t.match(await patch({ enabled: false }), { status: 200, body: { status: 'disabled', name: 'y' } })
  t.same(await service.verify(plaintext_key), { valid: false, code: 'disabled' })
  t.match(await patch({ enabled: true, name: null, expires_at: null }), { status: 200, body: { status: 'active', name: null, expires_at: null } })
  t.match(await service.verify(plaintext_key), { valid: true })
  const before = (await service.call('GET', '/v1/events', { token })).body.events
  t.same(before.at(-1).data, { changes: { enabled: { from: false, to: true }, name: { from: 'y', to: null }, expires_at: { from: '2999-01-01T00:00:00.000Z', to: null } } })
  t.match(await patch({ enabled: true }), { status: 200 })
  t.same((await service.call('GET', '/v1/events', { token })).body.events, before, 'what changes nothing is no event')
})

t.test('PATCH: a later end waits for whoever counts the keys of the Mecha to issue another one, and a name does not', async (t) => {
  const service = await startService(t)
  const token = await service.token()
  const { key } = await service.issue({ expires_in: 600 })
  const patch = (body: object) => service.call('PATCH', `/v1/keys/${key.id}`, { token, body })
  const { db } = service.database
  let isOver = false
  let later: ReturnType<typeof patch>
  await db.transaction().execute(async (trx) => {
    await trx.selectFrom('mechas').select('handle').forUpdate().execute()
    t.match(await patch({ name: 'y' }), { status: 200 })
    later = patch({ expires_at: '2999-01-01T00:00:00Z' })
    void later.then(() => (isOver = true))
    const waits = async () => (await sql`SELECT FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'mecha-keys control' AND wait_event_type = 'Lock'`.execute(db)).rows.length > 0
    await eventually(async () => isOver || (await waits()))
    t.equal(isOver, false)
  })
  t.match(await later!, { status: 200, body: { expires_at: '2999-01-01T00:00:00.000Z' } })
})

t.test('PATCH 400 and 404', async (t) => {
  const service = await startService(t, { KEY_MAX_TTL: '1h' })
  const token = await service.token()
  const { key } = await service.issue()
  for (const [body, field] of [
    [{}, 'body'], [{ enabled: 'no' }, 'body.enabled'], [{ status: 'revoked' }, 'body.status'], [{ scopes: [] }, 'body.scopes'],
    [{ expires_at: '2001-01-01T00:00:00Z' }, 'body.expires_at'], [{ expires_at: null }, 'body.expires_at'], [{ expires_at: '2999-01-01T00:00:00Z' }, 'body.expires_at'],
  ] as const)
    t.match(await service.call('PATCH', `/v1/keys/${key.id}`, { token, body }), { status: 400, body: { errors: [{ field }] } }, JSON.stringify(body))
  t.match(await service.call('PATCH', `/v1/keys/${NONE}`, { token, body: { name: 'x' } }), { status: 404 })
})

t.test('PATCH 409: a key that has ended does not change, nor come back', async (t) => {
  const service = await startService(t)
  const token = await service.token()
  const revoked = await service.issue()
  await service.call('POST', `/v1/keys/${revoked.key.id}/revoke`, { token })
  t.match(await service.call('PATCH', `/v1/keys/${revoked.key.id}`, { token, body: { enabled: true } }), { status: 409, body: { code: 'key_revoked' } })
  const expired = await service.issue()
  await service.database.db.updateTable('keys').set({ expires_at: new Date() }).where('revoked_at', 'is', null).execute()
  t.match(await service.call('PATCH', `/v1/keys/${expired.key.id}`, { token, body: { expires_at: '2999-01-01T00:00:00Z' } }), { status: 409, body: { code: 'key_expired' } })
})
