import { sql } from 'kysely'
import t from 'tap'
import { startService } from '../../helpers/service.js'

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
