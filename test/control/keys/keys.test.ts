import { sql } from 'kysely'
import t from 'tap'
import { eventually } from '../../helpers/eventually.js'
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

t.test('the list is newest first, in pages that neither skip nor repeat while keys are issued', async (t) => {
  const service = await startService(t, { MAX_ACTIVE_KEYS_PER_MECHA: '1000' })
  const token = await service.token()
  const before: string[] = []
  for (let i = 0; i < 23; i++) before.push((await service.issue()).key.id)
  // Several keys of one millisecond: their order is the id's.
  await service.database.db.updateTable('keys').set({ created_at: new Date() } as never).where('mecha', '=', 'sales^acmecorp').execute()
  const seen: string[] = []
  let cursor: string | null = ''
  while (cursor !== null) {
    const page: any = (await service.call('GET', `/v1/keys?limit=5${cursor && `&cursor=${cursor}`}`, { token })).body
    t.ok(page.keys.length <= 5)
    seen.push(...page.keys.map((key: any) => key.id))
    cursor = page.next_cursor
    await service.issue()
  }
  t.same(seen, before.toSorted().reverse())
})

t.test('the list is filtered by Mecha and by status as of the instant', async (t) => {
  const service = await startService(t)
  const token = await service.token()
  const list = async (query: string) => (await service.call('GET', `/v1/keys${query}`, { token })).body.keys.map((key: any) => key.id)
  const ids: Record<string, string> = {}
  for (const status of ['active', 'disabled', 'expired', 'revoked']) ids[status] = (await service.issue({ expires_in: 3600 })).key.id
  const other = (await service.issue({ mecha: 'buyer^acmecorp' })).key.id
  await service.call('PATCH', `/v1/keys/${ids['disabled']}`, { token, body: { enabled: false } })
  await service.call('POST', `/v1/keys/${ids['revoked']}/revoke`, { token })
  const { db } = service.database
  const expired = await db.selectFrom('keys').select('id').orderBy('created_at').orderBy('id').offset(2).limit(1).executeTakeFirstOrThrow()
  await db.updateTable('keys').set({ expires_at: new Date() }).where('id', '=', expired.id).execute()
  for (const [status, id] of Object.entries(ids)) {
    const expected = status === 'active' ? [other, id] : [id]
    t.same(await list(`?status=${status}`), expected, status)
    t.equal((await service.call('GET', `/v1/keys/${id}`, { token })).body.status, status, 'as the key itself says')
  }
  t.same(await list('?mecha=buyer%5Eacmecorp'), [other])
  t.same(await list('?mecha=nobody%5Eacmecorp'), [])
  t.equal((await list('')).length, 5)
})

t.test('keys that have expired are listed by when they did, the last first, and those of one Mecha as all others are', async (t) => {
  const service = await startService(t, { MAX_ACTIVE_KEYS_PER_MECHA: '100' })
  const token = await service.token()
  const ids: string[] = []
  for (const _ of Array.from({ length: 7 })) ids.push((await service.issue({ expires_in: 3600 })).key.id)
  await service.issue()
  const { db } = service.database
  // The newest one ended first.
  await sql`UPDATE keys SET expires_at = now() - n * interval '1 minute' FROM (SELECT id AS of, row_number() OVER (ORDER BY id) AS n FROM keys WHERE expires_at IS NOT NULL) AS numbered WHERE id = of`.execute(db)
  // Several in one millisecond: their order is the id's.
  const same = await db.selectFrom('keys').select('id').where('expires_at', 'is not', null).orderBy('id').limit(3).execute()
  await db.updateTable('keys').set({ expires_at: new Date(Date.now() - 1000) }).where('id', 'in', same.map(({ id }) => id)).execute()
  const list = async (query: string, until = 99) => {
    const seen: string[] = []
    let cursor: string | null = ''
    while (cursor !== null && seen.length < until) {
      const page: any = (await service.call('GET', `/v1/keys?limit=2&status=expired${query}${cursor && `&cursor=${cursor}`}`, { token })).body
      seen.push(...page.keys.map((key: any) => key.id))
      cursor = page.next_cursor
    }
    return { seen, cursor }
  }
  const [a, b, c, ...others] = ids
  t.same((await list('')).seen, [c, b, a, ...others])
  t.same((await list('&mecha=sales%5Eacmecorp')).seen, ids.toReversed())
  const { cursor: byEnd } = await list('', 2)
  const { cursor: byCreation } = await list('&mecha=sales%5Eacmecorp', 2)
  const get = async (query: string) => service.call('GET', `/v1/keys?${query}`, { token })
  for (const query of ['status=active', 'status=expired&mecha=sales%5Eacmecorp', 'limit=2']) t.match(await get(`${query}&cursor=${byEnd}`), { status: 400, body: { errors: [{ field: 'query.cursor' }] } }, query)
  // As the release before gave it.
  t.same((await get(`status=expired&cursor=${byCreation}`)).body.keys.map(({ id }: any) => id), ids.toReversed().slice(2))
})

t.test('GET list 400', async (t) => {
  const service = await startService(t)
  const token = await service.token()
  for (const [query, field] of [
    ['limit=0', 'query.limit'], ['limit=101', 'query.limit'], ['limit=x', 'query.limit'], ['status=dead', 'query.status'], ['mecha=x', 'query.mecha'],
    ['cursor=x', 'query.cursor'], ['page=2', 'query.page'],
  ] as const)
    t.match(await service.call('GET', `/v1/keys?${query}`, { token }), { status: 400, body: { errors: [{ field }] } }, query)
})
