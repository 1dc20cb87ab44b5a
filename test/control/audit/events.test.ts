import { sql } from 'kysely'
import t from 'tap'
import { insertEvents } from '../../../src/control/audit/store.js'
import { newId, parsePublicId } from '../../../src/credentials/id.js'
import { startService } from '../../helpers/service.js'

t.test('every change of state is in the audit trail: who, from where, by which request, what, when', async (t) => {
  const service = await startService(t)
  const token = await service.token()
  const headers = { 'x-request-id': 'req-1' }
  const { body } = await service.call('POST', '/v1/keys', { token, body: { mecha: 'sales^acmecorp', expires_in: 60 }, headers })
  const { id } = body.key
  await service.call('PATCH', `/v1/keys/${id}`, { token, body: { name: 'x' }, headers: { 'x-request-id': 'req-2' } })
  const rotated = await service.call('POST', `/v1/keys/${id}/rotate`, { token, body: { overlap_seconds: 0 } })
  await service.call('POST', `/v1/keys/${rotated.body.key.id}/revoke`, { token: await service.token({ subject: 'bob' }), body: { reason: 'leaked' } })
  await service.gateway()
  const { events } = (await service.call('GET', '/v1/events', { token })).body
  const ours = { mecha: 'sales^acmecorp', address: '127.0.0.1' }
  t.match(events, [
    { type: 'key.issued', key_id: id, actor: 'builtin:alice', request_id: 'req-1', at: body.key.created_at, data: { expires_at: body.key.expires_at }, ...ours },
    { type: 'key.updated', key_id: id, request_id: 'req-2', data: { changes: { name: { from: null, to: 'x' } } }, ...ours },
    { type: 'key.rotated', key_id: id, data: { rotated_to: rotated.body.key.id }, ...ours },
    { type: 'key.issued', key_id: rotated.body.key.id, data: { rotated_from: id }, ...ours },
    { type: 'key.revoked', key_id: rotated.body.key.id, actor: 'builtin:bob', data: { reason: 'leaked' }, ...ours },
    { type: 'gateway.created', key_id: /^gw_/, mecha: null },
  ])
  t.equal(events.length, 6)
})

t.test('what was refused is no event, and an event that cannot be written undoes what it was of', async (t) => {
  const service = await startService(t, { MAX_ACTIVE_KEYS_PER_MECHA: '1' })
  const token = await service.token()
  const { key, plaintext_key } = await service.issue()
  await service.call('POST', '/v1/keys', { token, body: { mecha: 'sales^acmecorp' } })
  await service.call('POST', '/v1/keys', { token, body: {} })
  t.equal((await service.call('GET', '/v1/events', { token })).body.events.length, 1)
  const { db } = service.database
  await sql`ALTER TABLE events ADD CONSTRAINT no_more_events CHECK (false) NOT VALID`.execute(db)
  t.match(await service.call('POST', `/v1/keys/${key.id}/revoke`, { token }), { status: 500, body: { code: 'internal_error' } })
  await sql`ALTER TABLE events DROP CONSTRAINT no_more_events`.execute(db)
  t.match(await service.verify(plaintext_key), { valid: true }, 'not revoked, as it was not recorded')
})

t.test('the trail is read in order, filtered and from a position on', async (t) => {
  const service = await startService(t)
  const token = await service.token()
  const keys = [await service.issue(), await service.issue({ mecha: 'buyer^acmecorp' }), await service.issue()]
  await service.call('POST', `/v1/keys/${keys[0]!.key.id}/revoke`, { token })
  const get = async (query: string) => (await service.call('GET', `/v1/events?${query}`, { token })).body
  t.equal((await get('mecha=buyer%5Eacmecorp')).events.length, 1)
  t.same((await get(`key_id=${keys[0]!.key.id}`)).events.map((event: any) => event.type), ['key.issued', 'key.revoked'])
  t.equal((await get('type=key.revoked')).events.length, 1)
  const seen: string[] = []
  let after = '0'
  for (;;) {
    const page = await get(`limit=1&after=${after}`)
    if (page.events.length === 0) break
    seen.push(page.events[0].key_id)
    after = page.next_after
  }
  t.same(seen, [...keys.map(({ key }) => key.id), keys[0]!.key.id])
  t.equal((await get(`after=${after}`)).next_after, after, 'and from here on, later')
  for (const query of ['after=x', 'type=key.lost', 'key_id=x', 'limit=1000']) t.match(await service.call('GET', `/v1/events?${query}`, { token }), { status: 400 }, query)
})

t.test('the trail is filtered by who did it and by time, on top of the other filters and from page to page', async (t) => {
  const service = await startService(t)
  const token = await service.token()
  const { key } = await service.issue({}, { subject: 'alice' })
  await service.issue({ mecha: 'buyer^acmecorp' }, { subject: 'bob' })
  await service.call('POST', `/v1/keys/${key.id}/revoke`, { token: await service.token({ subject: 'bob' }) })
  await service.issue({ mecha: 'sales^rival' }, { org: 'rival', subject: 'bob' })
  const get = async (query: Record<string, string>) => (await service.call('GET', `/v1/events?${new URLSearchParams(query).toString()}`, { token })).body
  const types = async (query: Record<string, string>) => (await get(query)).events.map(({ type, actor }: any) => `${type} ${actor}`)
  const [issue, other, end] = (await get({})).events
  t.same(await types({ actor: 'builtin:bob' }), ['key.issued builtin:bob', 'key.revoked builtin:bob'])
  t.same(await types({ actor: 'builtin:bob', key_id: key.id }), ['key.revoked builtin:bob'])
  t.same(await types({ actor: 'bob' }), [], 'the whole of it')
  t.same(await types({ since: other.at }), (await types({})).slice([issue, other].findIndex(({ at }) => at === other.at)), 'since includes its time')
  t.same(await types({ until: issue.at }), [], 'until does not')
  t.equal((await types({ until: '2999-01-01T01:00:00+01:00' })).length, 3)
  t.same(await types({ since: end.at, until: end.at }), [])
  const first = await get({ since: issue.at, limit: '2' })
  t.same((await get({ since: issue.at, after: first.next_after })).events, [end], 'pages are those of what is filtered')
  for (const query of [{ since: 'yesterday' }, { until: '2030-02-30T00:00:00Z' }, { since: '1' }, { actor: '' }])
    t.match(await service.call('GET', `/v1/events?${new URLSearchParams(query as Record<string, string>).toString()}`, { token }), { status: 400, body: { code: 'invalid_request' } }, JSON.stringify(query))
})

t.test('what happened since or until a time is found wherever a clock that was set back by hours has put it', async (t) => {
  const service = await startService(t)
  const token = await service.token()
  const hours = [-300, -270, -290, -280, -250, -272, -260, -225, -240, -100, -101]
  const at = (hour: number) => new Date(Date.UTC(2026, 0, 30) + hour * 3_600_000)
  const event = { type: 'key.updated', key_id: newId(), kind: 'mecha' as const, mecha: 'sales^acmecorp', actor: 'test', request_id: 'x', address: 'x', data: {} }
  await service.database.db.transaction().execute((trx) => insertEvents(trx, 'acme', hours.map((hour) => ({ ...event, at: at(hour) }))))
  const found = async (query: Record<string, string>) => {
    const { events } = (await service.call('GET', `/v1/events?${new URLSearchParams({ actor: 'test', ...query }).toString()}`, { token })).body
    return events.map((one: any) => one.at)
  }
  for (const hour of hours) {
    const since = at(hour)
    const expected = (isWithin: (time: Date) => boolean) => hours.map(at).filter(isWithin).map((time) => time.toISOString())
    t.same(await found({ since: since.toISOString() }), expected((time) => time >= since), `since ${hour}`)
    t.same(await found({ until: since.toISOString() }), expected((time) => time < since), `until ${hour}`)
    const until = at(hour + 15)
    t.same(await found({ since: since.toISOString(), until: until.toISOString() }), expected((time) => time >= since && time < until), `from ${hour} on`)
  }
})

t.test('a reader who follows the trail while many write misses no event', async (t) => {
  const service = await startService(t, { DATABASE_TIMEOUT: '30s', MAX_ACTIVE_KEYS_PER_MECHA: '1000' })
  const token = await service.token()
  const seen = new Set<string>()
  let after = '0'
  let writing = true
  const read = async () => {
    for (;;) {
      const last = !writing
      const { body } = await service.call('GET', `/v1/events?limit=100&after=${after}`, { token })
      for (const event of body.events) seen.add(event.key_id)
      after = body.next_after
      if (last && body.events.length === 0) return
    }
  }
  const reader = read()
  const written = await Promise.all(Array.from({ length: 120 }, (_, i) => service.issue({ mecha: `m${i % 10}^acmecorp` })))
  writing = false
  await reader
  t.same([...seen].sort(), written.map(({ key }) => key.id).sort())
})

t.test('positions are in the order of commits: who comes second to write for an organization waits for the first', async (t) => {
  const service = await startService(t, { DATABASE_TIMEOUT: '30s' })
  const { db } = service.database
  const { key } = await service.issue()
  const waiting = async () => (await sql`SELECT FROM pg_locks WHERE locktype = 'advisory' AND NOT granted AND database = (SELECT oid FROM pg_database WHERE datname = current_database())`.execute(db)).rows.length
  let second: Promise<unknown> | undefined
  await db.transaction().execute(async (trx) => {
    const event = { at: new Date(), type: 'key.updated', org_id: 'acme', key_id: parsePublicId('mecha', key.id)!, kind: 'mecha' as const, mecha: 'sales^acmecorp', actor: 'slow', request_id: 'x', address: 'x', data: {} }
    await insertEvents(trx, 'acme', [event])
    let settled = false
    second = service.issue({ mecha: 'buyer^acmecorp' }).finally(() => (settled = true))
    const elsewhere = await service.issue({ mecha: 'sales^rival' }, { org: 'rival' })
    t.match(elsewhere.key.id, /^key_/, 'another organization does not wait')
    while (!settled && (await waiting()) === 0);
    t.equal(settled, false, 'the second waits')
  })
  await second
  const { body } = await service.call('GET', '/v1/events', { token: await service.token() })
  t.same(body.events.map((event: any) => event.actor), ['builtin:alice', 'slow', 'builtin:alice'])
})
