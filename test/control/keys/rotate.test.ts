import { sql } from 'kysely'
import t from 'tap'
import { parsePublicId } from '../../../src/credentials/id.js'
import { applied } from '../../helpers/database.js'
import { eventually } from '../../helpers/eventually.js'
import { startService, type Answer } from '../../helpers/service.js'

const seconds = (from: string, to: string) => (Date.parse(to) - Date.parse(from)) / 1000

t.test('201: both keys are valid until the overlap ends, then the successor alone', async (t) => {
  const service = await startService(t)
  const token = await service.token()
  const old = await service.issue({ name: 'x', scopes: ['a'], metadata: { b: 1 } })
  const { status, body, headers } = await service.call('POST', `/v1/keys/${old.key.id}/rotate`, { token, body: { overlap_seconds: 60 } })
  t.equal(status, 201)
  t.equal(headers['cache-control'], 'no-store')
  t.equal(headers['location'], `/v1/keys/${body.key.id}`)
  t.match(body.key, { mecha: 'sales^acmecorp', name: 'x', scopes: ['a'], metadata: { b: 1 }, rotated_from: old.key.id, rotated_to: null, status: 'active', expires_at: null })
  const before = (await service.call('GET', `/v1/keys/${old.key.id}`, { token })).body
  t.match(before, { rotated_to: body.key.id, status: 'active' })
  t.equal(seconds(body.key.created_at, before.expires_at), 60)
  t.match(await service.verify(old.plaintext_key), { valid: true })
  t.match(await service.verify(body.plaintext_key), { valid: true, key_id: body.key.id })
  // The overlap's end, brought forward.
  await service.database.db.updateTable('keys').set({ expires_at: new Date() }).where('rotated_to', 'is not', null).execute()
  await applied(service.database)
  t.same(await service.verify(old.plaintext_key), { valid: false, code: 'expired' })
  t.match(await service.verify(body.plaintext_key), { valid: true })
})

t.test('201: an overlap of none ends the old key at once', async (t) => {
  const service = await startService(t)
  const old = await service.issue()
  const { body } = await service.call('POST', `/v1/keys/${old.key.id}/rotate`, { token: await service.token(), body: { overlap_seconds: 0 } })
  t.same(await service.verify(old.plaintext_key), { valid: false, code: 'expired' })
  t.match(await service.verify(body.plaintext_key), { valid: true })
})

t.test('a key that was ended at once stays ended when the database\'s clock goes back', async (t) => {
  const service = await startService(t)
  const token = await service.token()
  const old = await service.issue()
  await service.call('POST', `/v1/keys/${old.key.id}/rotate`, { token, body: { overlap_seconds: 0 } })
  t.match((await service.call('GET', `/v1/keys/${old.key.id}`, { token })).body, { status: 'expired' })
  // What a clock that goes back by an hour makes of its end.
  await service.database.db.updateTable('keys').set({ expires_at: new Date(Date.now() + 3_600_000) }).where('rotated_to', 'is not', null).execute()
  await applied(service.database)
  t.same(await service.verify(old.plaintext_key), { valid: false, code: 'disabled' })
})

t.test('201: without a body the overlap is the setting\'s, and what the request says wins over what is inherited', async (t) => {
  const service = await startService(t, { ROTATE_DEFAULT_OVERLAP: '5m' })
  const token = await service.token()
  const old = await service.issue({ name: 'x', expires_in: 86_400 })
  const first = await service.call('POST', `/v1/keys/${old.key.id}/rotate`, { token })
  t.equal(first.status, 201, first.text)
  t.equal(seconds(first.body.key.created_at, (await service.call('GET', `/v1/keys/${old.key.id}`, { token })).body.expires_at), 300)
  t.equal(seconds(first.body.key.created_at, first.body.key.expires_at), 86_400, 'a life as long as the one before')
  const second = await service.call('POST', `/v1/keys/${first.body.key.id}/rotate`, { token, body: { name: 'y', scopes: ['s'], metadata: { m: 1 }, expires_in: 60 } })
  t.match(second.body.key, { name: 'y', scopes: ['s'], metadata: { m: 1 } })
  t.equal(seconds(second.body.key.created_at, second.body.key.expires_at), 60)
})

t.test('201: rotation never lengthens the old key\'s life, nor does a later PATCH', async (t) => {
  const service = await startService(t)
  const token = await service.token()
  const old = await service.issue({ expires_in: 60 })
  await service.call('POST', `/v1/keys/${old.key.id}/rotate`, { token, body: { overlap_seconds: 3600 } })
  t.equal((await service.call('GET', `/v1/keys/${old.key.id}`, { token })).body.expires_at, old.key.expires_at)
  for (const expires_at of ['2999-01-01T00:00:00Z', null])
    t.match(await service.call('PATCH', `/v1/keys/${old.key.id}`, { token, body: { expires_at } }), { status: 400, body: { errors: [{ field: 'body.expires_at', rule: 'maximum' }] } })
  const sooner = new Date(Date.parse(old.key.expires_at) - 30_000).toISOString()
  t.match(await service.call('PATCH', `/v1/keys/${old.key.id}`, { token, body: { expires_at: sooner } }), { status: 200, body: { expires_at: sooner } })
})

t.test('the old key ends with its overlap, or when it would have ended if that is sooner', async (t) => {
  const service = await startService(t)
  const token = await service.token()
  for (const life of [undefined, 30, 100]) for (const overlap of [0, 29, 31, 3600]) {
    const old = (await service.issue(life === undefined ? {} : { expires_in: life })).key
    const { body } = await service.call('POST', `/v1/keys/${old.id}/rotate`, { token, body: { overlap_seconds: overlap } })
    const end = Date.parse((await service.call('GET', `/v1/keys/${old.id}`, { token })).body.expires_at)
    t.equal(end, Math.min(Date.parse(old.expires_at ?? '2999-01-01T00:00:00Z'), Date.parse(body.key.created_at) + overlap * 1000), `${life}, ${overlap}`)
    await service.call('POST', '/v1/mechas/sales%5Eacmecorp/revoke-keys', { token, headers: { prefer: 'wait=0' } })
  }
})

t.test('a successor is made of a key as it was read, and otherwise of what it is by then', async (t) => {
  const service = await startService(t)
  const token = await service.token()
  const { db } = service.database
  const isWaiting = async () => (await sql`SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'`.execute(db)).rows.length > 0
  for (const [change, expected] of [
    [sql`name = 'other', metadata = '{"b": 2}'`, { status: 201, body: { key: { name: 'other', metadata: { b: 2 } } } }],
    [sql`enabled = false`, { status: 409, body: { code: 'key_disabled' } }],
    [sql`expires_at = now()`, { status: 409, body: { code: 'key_expired' } }],
    [sql`revoked_at = now(), revoked_by = 'restore'`, { status: 409, body: { code: 'key_revoked' } }],
  ] as const) {
    const { key } = await service.issue({ name: 'x' })
    const id = parsePublicId('mecha', key.id)!
    let answer: Promise<Answer>
    await db.transaction().execute(async (trx) => {
      await sql`UPDATE keys SET ${change} WHERE id = ${id}`.execute(trx)
      answer = service.call('POST', `/v1/keys/${key.id}/rotate`, { token })
      await eventually(isWaiting)
    })
    t.match(await answer!, expected)
  }
})

t.test('400 and 404', async (t) => {
  const service = await startService(t, { ROTATE_MAX_OVERLAP: '2h' })
  const token = await service.token()
  const { key } = await service.issue()
  for (const [body, field] of [
    [{ overlap_seconds: -1 }, 'body.overlap_seconds'], [{ overlap_seconds: 7201 }, 'body.overlap_seconds'], [{ overlap_seconds: '60' }, 'body.overlap_seconds'],
    [{ mecha: 'buyer^acmecorp' }, 'body.mecha'], [{ expires_in: 0 }, 'body.expires_in'],
  ] as const)
    t.match(await service.call('POST', `/v1/keys/${key.id}/rotate`, { token, body }), { status: 400, body: { errors: [{ field }] } })
  t.match(await service.call('POST', '/v1/keys/key_01jd9p5v3fe8rr2k7m4q9wx0zt/rotate', { token }), { status: 404, body: { code: 'not_found' } })
  t.match((await service.call('GET', `/v1/keys/${key.id}`, { token })).body, { rotated_to: null, expires_at: null }, 'nothing is half written')
})

t.test('409: a revoked, expired, disabled or already rotated key is not rotated, and the answer says which', async (t) => {
  const service = await startService(t)
  const token = await service.token()
  const rotate = (id: string) => service.call('POST', `/v1/keys/${id}/rotate`, { token, body: {} })
  const revoked = (await service.issue()).key.id
  await service.call('POST', `/v1/keys/${revoked}/revoke`, { token })
  t.match(await rotate(revoked), { status: 409, body: { code: 'key_revoked' } })
  const disabled = (await service.issue()).key.id
  await service.call('PATCH', `/v1/keys/${disabled}`, { token, body: { enabled: false } })
  t.match(await rotate(disabled), { status: 409, body: { code: 'key_disabled' } })
  const rotated = (await service.issue()).key.id
  const successor = (await rotate(rotated)).body.key.id
  const again = await rotate(rotated)
  t.match(again, { status: 409, body: { code: 'key_already_rotated' } })
  t.ok(again.body.detail.includes(successor), 'and names the successor')
  const expired = (await service.issue({ name: 'expired' })).key.id
  await service.database.db.updateTable('keys').set({ expires_at: new Date() }).where('name', '=', 'expired').execute()
  t.match(await rotate(expired), { status: 409, body: { code: 'key_expired' } })
})

t.test('409: at the limit a key can still be rotated, but a chain of overlaps has an end', async (t) => {
  const service = await startService(t, { MAX_ACTIVE_KEYS_PER_MECHA: '2' })
  const token = await service.token()
  const rotate = (id: string) => service.call('POST', `/v1/keys/${id}/rotate`, { token, body: { overlap_seconds: 3600 } })
  await service.issue()
  let answer = await rotate((await service.issue()).key.id)
  t.equal(answer.status, 201)
  answer = await rotate(answer.body.key.id)
  t.equal(answer.status, 201)
  t.match(await rotate(answer.body.key.id), { status: 409, body: { code: 'key_limit_reached' } })
})

t.test('fifty rotations of one key at the same instant: exactly one succeeds', async (t) => {
  const service = await startService(t, { DATABASE_TIMEOUT: '30s' })
  const token = await service.token()
  const { key } = await service.issue()
  const answers = await Promise.all(Array.from({ length: 50 }, () => service.call('POST', `/v1/keys/${key.id}/rotate`, { token, body: { overlap_seconds: 60 } })))
  t.equal(answers.filter(({ status }) => status === 201).length, 1)
  t.equal(answers.filter(({ status, body }) => status === 409 && body.code === 'key_already_rotated').length, 49)
  t.equal((await service.call('GET', '/v1/keys', { token })).body.keys.length, 2)
})
