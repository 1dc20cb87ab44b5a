/** `GET /v1/changes`, as its bytes come: who is told what, where a stream goes on, and when it ends. */

import { once } from 'node:events'
import { connect, type AddressInfo } from 'node:net'
import { text } from 'node:stream/consumers'
import { sql } from 'kysely'
import t, { type Test } from 'tap'
import { contractOf } from '../../helpers/contract.js'
import { applied, createDatabase } from '../../helpers/database.js'
import { listen } from '../../helpers/events.js'
import { eventually } from '../../helpers/eventually.js'
import { fresh, startService, type Service } from '../../helpers/service.js'
import { layWire } from '../../helpers/wire.js'

t.test('a stream begins with a reset and a confirmation, and may be kept by nobody on its way', async (t) => {
  const { url, gateway } = await serving(t)
  const stream = await listen(t, url, gateway)
  t.equal(stream.status, 200)
  t.match(Object.fromEntries(stream.headers), { 'content-type': 'text/event-stream; charset=utf-8', 'cache-control': 'no-store', 'x-accel-buffering': 'no', 'x-request-id': /./ })
  const { confirmed_ms, database_time } = await stream.heard('confirmed')
  t.same(stream.events.slice(0, 2).map(({ event }) => event), ['reset', 'confirmed'])
  t.ok(Number.isInteger(confirmed_ms) && confirmed_ms <= 0, 'what is confirmed was asked for before the stream was opened')
  t.ok(Math.abs(Date.parse(database_time) - Date.now()) < 60_000)
  await stream.heard('confirmed', (data) => data.confirmed_ms > confirmed_ms)
  t.match(contractOf().paths['/v1/changes']!['get'], { responses: { 200: { content: { 'text/event-stream': {} } } } })
})

t.test('a gateway is told of its own organization, and one of all organizations of all', async (t) => {
  const { service, url, gateway } = await serving(t)
  const other = await service.gateway({ org: 'other' })
  const everybody = await gatewayOfAll(service)
  const [ours, theirs] = [await service.issue(), await service.issue({ mecha: 'sales^other' }, { org: 'other' })]
  const [mine, others, all] = [await listen(t, url, gateway), await listen(t, url, other), await listen(t, url, everybody)]
  for (const [{ key }, org] of [[ours, 'acme'], [theirs, 'other']] as const)
    await service.call('POST', `/v1/keys/${key.id}/revoke`, { token: await service.token({ org }) })
  await all.heard('changed', ({ key_ids }) => key_ids.includes(theirs.key.id))
  await mine.heard('changed', ({ key_ids }) => key_ids.includes(ours.key.id))
  await others.heard('changed', ({ key_ids }) => key_ids.includes(theirs.key.id))
  const told = (one: typeof mine) => one.of('changed').flatMap(({ key_ids }) => key_ids)
  t.same(told(mine), [ours.key.id])
  t.same(told(others), [theirs.key.id])
  t.same(told(all).sort(), [ours.key.id, theirs.key.id].sort())
  const seen = JSON.stringify([mine.events, others.events, all.events])
  t.notMatch(seen, /gw_|acme|sales|mecha_/, 'and of nothing but ids of keys')
})

t.test('every way to change a key is told, also by hand', async (t) => {
  const { service, url, gateway } = await serving(t)
  const token = await service.token()
  const stream = await listen(t, url, gateway)
  const ways: Record<string, (id: string) => Promise<unknown>> = {
    revoked: (id) => service.call('POST', `/v1/keys/${id}/revoke`, { token }),
    disabled: (id) => service.call('PATCH', `/v1/keys/${id}`, { token, body: { enabled: false } }),
    'ended sooner': (id) => service.call('PATCH', `/v1/keys/${id}`, { token, body: { expires_at: '2100-01-01T00:00:00Z' } }),
    rotated: (id) => service.call('POST', `/v1/keys/${id}/rotate`, { token }),
    'revoked with all of its Mecha': () => service.call('POST', '/v1/mechas/sales%5Eacmecorp/revoke-keys', { token }),
    'changed by hand': () => sql`UPDATE keys SET scopes = '{x}' WHERE kind = 'mecha' AND revoked_at IS NULL`.execute(service.database.db),
  }
  for (const [way, change] of Object.entries(ways)) {
    const { key } = await service.issue()
    await change(key.id)
    t.ok(await stream.heard('changed', ({ key_ids }) => key_ids.includes(key.id)), way)
  }
})

t.test('a stream goes on where it ended, to the letter, with any replica', async (t) => {
  const { service, url, gateway } = await serving(t)
  const second = await startService(t, { ROOT_SECRETS: service.config.ROOT_SECRETS!.join() }, service.database)
  const otherUrl = await second.app.listen({ port: 0 })
  await fresh(second)
  const revoked = async () => {
    const { key } = await service.issue()
    await service.call('POST', `/v1/keys/${key.id}/revoke`, { token: await service.token(), headers: { prefer: 'wait=10' } })
    return key.id
  }
  const first = await listen(t, url, gateway)
  const before = await revoked()
  await first.heard('changed', ({ key_ids }) => key_ids.includes(before))
  first.hangUp()
  const meanwhile = [await revoked(), await revoked()]
  for (const [name, replica] of [['the same replica', url], ['another one', otherUrl]] as const) {
    const again = await listen(t, replica, gateway, first.lastId())
    await again.heard('confirmed')
    t.same(again.of('reset'), [], `${name} need not begin anew`)
    t.same(again.of('changed').flatMap(({ key_ids }) => key_ids).sort(), meanwhile.toSorted(), `${name} tells what was missed, and no more`)
    t.equal(again.events.at(-1)!.event, 'confirmed', 'and vouches only after that')
    const more = await revoked()
    await again.heard('changed', ({ key_ids }) => key_ids.includes(more))
    meanwhile.push(more)
  }
})

t.test('a transaction that began before a position and commits after it is told to who comes back', async (t) => {
  const { service, url, gateway } = await serving(t)
  const [early, late] = [await service.issue(), await service.issue()]
  const [stream, witness] = [await listen(t, url, gateway), await listen(t, url, gateway)]
  await stream.heard('confirmed')
  await service.database.db.transaction().execute(async (trx) => {
    await sql`UPDATE keys SET enabled = false WHERE id IN (SELECT id FROM keys WHERE kind = 'mecha' ORDER BY id LIMIT 1)`.execute(trx)
    // A later transaction is over, and is told, before this one is.
    await service.call('POST', `/v1/keys/${late.key.id}/revoke`, { token: await service.token() })
    await stream.heard('changed', ({ key_ids }) => key_ids.includes(late.key.id))
    stream.hangUp()
  })
  // Whoever comes back before a change has been told is told of it twice.
  await witness.heard('changed', ({ key_ids }) => key_ids.includes(early.key.id))
  const again = await listen(t, url, gateway, stream.lastId())
  await again.heard('confirmed')
  t.same(again.of('reset'), [])
  t.same(again.of('changed'), [{ key_ids: [early.key.id] }])
})

t.test('where a position cannot be gone on from, a stream begins with a reset', async (t) => {
  const { service, url, gateway } = await serving(t)
  const stream = await listen(t, url, gateway)
  await stream.heard('confirmed')
  const [history, time, snapshot] = stream.lastId()!.split('.') as [string, string, string]
  const before = (ms: number) => (parseInt(time, 36) - ms).toString(36)
  const positions = {
    'of another history': [(parseInt(history, 36) ^ 1).toString(36), time, snapshot].join('.'),
    'too old': [history, before(601_000), snapshot].join('.'),
    'from the future': [history, before(-601_000), snapshot].join('.'),
    'of no snapshot': [history, time, '9:1:'].join('.'),
    'that is none': 'x',
    'that holds SQL': `${history}.${time}.1:1:'; DROP TABLE keys; --`,
  }
  for (const [what, position] of Object.entries(positions)) {
    const again = await listen(t, url, gateway, position)
    await again.heard('confirmed')
    t.equal(again.events[0]!.event, 'reset', what)
    again.hangUp()
  }
  // All that was changed in a long time is more than is told one by one.
  await service.issue()
  await sql`INSERT INTO changes (key_id) SELECT id FROM keys, generate_series(1, 10001)`.execute(service.database.db)
  const long = await listen(t, url, gateway, [history, time, snapshot].join('.'))
  await long.heard('confirmed')
  t.equal(long.events[0]!.event, 'reset', 'more than can be told')
})

t.test('when the feed is lost and comes back, streams end, and a database that is another one is another history', async (t) => {
  const database = await createDatabase(t)
  const wire = await layWire(t, database.runtime)
  const { url, gateway, service } = await serving(t, { DATABASE_DIRECT_URL: wire.through(database.runtime) }, database)
  const stream = await listen(t, url, gateway)
  await stream.heard('confirmed')
  wire.cut()
  wire.restore()
  await eventually(() => stream.isOver())
  await fresh(service)
  const again = await listen(t, url, gateway, stream.lastId())
  await again.heard('confirmed')
  t.equal(again.events[0]!.event, 'reset', 'nobody was there meanwhile who could say that it is the same')
})

t.test('a replica whose feed is stale confirms nothing, ends its streams, and begins none', async (t) => {
  const database = await createDatabase(t)
  const wire = await layWire(t, database.runtime)
  const { url, gateway } = await serving(t, { REVOCATION_MAX_STALENESS: '1s', DATABASE_DIRECT_URL: wire.through(database.runtime) }, database)
  const stream = await listen(t, url, gateway)
  await stream.heard('confirmed')
  wire.silence()
  const at = performance.now()
  await eventually(() => stream.isOver())
  const confirmed = Math.max(...stream.of('confirmed').map(({ confirmed_ms }) => confirmed_ms))
  t.ok(performance.now() - at < 10_000)
  t.ok(confirmed < 20_000)
  const refused = await listen(t, url, gateway)
  t.equal(refused.status, 503)
  wire.restore()
  await eventually(async () => (await listen(t, url, gateway)).status === 200)
})

t.test('a gateway that is revoked loses its streams, and cannot come back', async (t) => {
  const { service, url, gateway } = await serving(t)
  const other = await service.gateway()
  const token = await service.token()
  const [stream, others] = [await listen(t, url, gateway), await listen(t, url, other)]
  await Promise.all([stream.heard('confirmed'), others.heard('confirmed')])
  const { body } = await service.call('GET', '/v1/gateways', { token })
  await service.call('POST', `/v1/gateways/${body.gateways.at(-1).id}/revoke`, { token })
  await eventually(() => stream.isOver())
  t.equal((await listen(t, url, gateway, stream.lastId())).status, 401)
  t.notOk(others.isOver(), 'another one keeps its own')
})

t.test('a gateway whose time is over loses its streams', async (t) => {
  const { service, url, gateway } = await serving(t, { REVOCATION_MAX_STALENESS: '1s' })
  await sql`UPDATE keys SET expires_at = clock_timestamp() + interval '2 seconds' WHERE kind = 'gateway'`.execute(service.database.db)
  // A change of its own row ends a stream as well.
  await applied(service.database)
  const stream = await listen(t, url, gateway)
  t.equal(stream.status, 200)
  await eventually(() => stream.isOver())
  t.equal((await listen(t, url, gateway)).status, 401)
})

t.test('a row that is gone, and whose it was nobody can say, makes everybody begin anew', async (t) => {
  const { service, url, gateway } = await serving(t)
  await service.issue()
  const stream = await listen(t, url, gateway)
  await stream.heard('confirmed')
  await sql`DELETE FROM keys WHERE kind = 'mecha'`.execute(service.database.db)
  await eventually(() => stream.isOver())
  t.same(stream.of('changed'), [])
  const again = await listen(t, url, gateway, stream.lastId())
  await again.heard('confirmed')
  t.equal(again.events[0]!.event, 'reset')
})

t.test('a gateway that does not read is cut off, and what waits for it is bounded', async (t) => {
  const { service, url, gateway } = await serving(t)
  await service.issue()
  const { port } = service.app.server.address() as AddressInfo
  const socket = connect(port, '127.0.0.1')
  socket.write(`GET /v1/changes HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer ${gateway}\r\n\r\n`)
  await once(socket, 'readable')
  const reading = await listen(t, url, gateway)
  const streams = () => metric(service, 'mecha_keys_change_streams')
  await eventually(async () => (await streams()) === 2)
  // Some hundred bytes for each of many keys, until nothing more fits in between.
  await sql`
    INSERT INTO keys (id, kind, org_id, mecha, hash, tag_root, pepper_root, created_at, created_by)
    SELECT uuidv7(), kind, org_id, mecha, hash, tag_root, pepper_root, created_at, created_by FROM keys, generate_series(1, 5000) WHERE kind = 'mecha'`.execute(service.database.db)
  for (let i = 0; (await streams()) === 2 && i < 200; i++) {
    await sql`UPDATE keys SET name = ${String(i)} WHERE kind = 'mecha'`.execute(service.database.db)
    const seen = reading.of('changed').length
    await eventually(() => reading.of('changed').length > seen || reading.isOver())
  }
  t.equal(await streams(), 1)
  t.notOk(reading.isOver(), 'who reads is told everything all the while')
  socket.destroy()
})

t.test('there are as many streams as are allowed, and a gateway has half of them at most', async (t) => {
  const { service, url, gateway } = await serving(t, { CHANGE_STREAMS_MAX: '4' })
  const others = [await service.gateway(), await service.gateway()]
  const statuses = async (credential: string, count: number) => {
    const all = []
    for (let i = 0; i < count; i++) all.push(await listen(t, url, credential))
    return all.map(({ status }) => status)
  }
  t.same(await statuses(gateway, 3), [200, 200, 503])
  t.same(await statuses(others[0]!, 1), [200])
  const last = await listen(t, url, others[1]!)
  t.equal(last.status, 200)
  t.same(await statuses(others[0]!, 1), [503], 'all are taken')
  last.hangUp()
  await eventually(async () => (await listen(t, url, others[0]!)).status === 200)
})

t.test('streams end as soon as a process drains, and it closes without waiting for who listens', async (t) => {
  const { service, url, gateway } = await serving(t)
  const stream = await listen(t, url, gateway)
  await stream.heard('confirmed')
  service.startDraining()
  await eventually(() => stream.isOver())
  t.equal((await listen(t, url, gateway)).status, 503)
  await service.app.close()
})

t.test('a process closes while a gateway listens that does not read', async (t) => {
  const { service, gateway } = await serving(t)
  const { port } = service.app.server.address() as AddressInfo
  const socket = connect(port, '127.0.0.1')
  socket.write(`GET /v1/changes HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer ${gateway}\r\n\r\n`)
  await once(socket, 'readable')
  await service.app.close()
  t.match(await text(socket), /event: reset/)
})

t.test('a process closes at once though a client has opened a connection to have one more', async (t) => {
  const { service } = await serving(t, { REQUEST_TIMEOUT: '2m' })
  const { port } = service.app.server.address() as AddressInfo
  const accepted = once(service.app.server, 'connection')
  const socket = connect(port, '127.0.0.1')
  await accepted
  const at = performance.now()
  await service.app.close()
  await text(socket)
  t.ok(performance.now() - at < 30_000)
})

t.test('a stream outlives the time in which a request has to arrive', async (t) => {
  const { url, gateway } = await serving(t, { REQUEST_TIMEOUT: '1s', REVOCATION_MAX_STALENESS: '1s' })
  const stream = await listen(t, url, gateway)
  await stream.heard('confirmed', ({ confirmed_ms }) => confirmed_ms > 3000)
  t.notOk(stream.isOver())
})

t.test('verify says how old its knowledge is, to who asks for it', async (t) => {
  const database = await createDatabase(t)
  const wire = await layWire(t, database.runtime)
  const { service, gateway } = await serving(t, { DATABASE_DIRECT_URL: wire.through(database.runtime) }, database)
  const { plaintext_key } = await service.issue()
  const ask = async (headers: Record<string, string>) => (await service.call('POST', '/v1/verify', { token: gateway, body: { key: plaintext_key }, headers })).headers
  const age = async () => Number((await ask({ prefer: 'freshness' }))['x-feed-age'])
  t.match(await ask({ prefer: 'freshness' }), { 'x-feed-age': /^\d{1,4}$/, 'preference-applied': 'freshness', 'cache-control': 'no-store' })
  t.equal((await ask({}))['x-feed-age'], undefined)
  wire.silence()
  await eventually(async () => (await age()) > 2000)
  const before = await age()
  t.ok((await age()) >= before, 'and it grows while nothing is heard')
})

t.test('nobody but a gateway listens', async (t) => {
  const { service, url } = await serving(t)
  const { plaintext_key } = await service.issue()
  for (const credential of ['nobody', await service.token(), plaintext_key]) t.equal((await listen(t, url, credential)).status, 401)
  t.match(await service.call('GET', '/v1/changes'), { status: 401, headers: { 'www-authenticate': 'Bearer realm="mecha-keys"' } })
  t.equal((await service.call('HEAD', '/v1/changes')).status, 405)
})

/** A service that listens, whose feed is fresh, and a gateway of `acme`. */
async function serving(t: Test, environment: Record<string, string> = {}, ...database: Parameters<typeof startService>[2][]) {
  const service = await startService(t, environment, ...database)
  const gateway = await service.gateway()
  const url = await service.app.listen({ port: 0 })
  await fresh(service)
  return { service, url, gateway }
}

/** Turns a gateway into one of all organizations, as the command line makes them. */
async function gatewayOfAll(service: Service): Promise<string> {
  const { createGateway } = await import('../../../src/control/gateways/create.js')
  const { createHasher } = await import('../../../src/credentials/hash-queue.js')
  const { requireRoots } = await import('../../../src/config.js')
  const { config, database } = service
  const hasher = createHasher({ profile: config.HASH_PROFILE, version: async () => 2, queueSize: 10, onDone: () => {} })
  const parts = { db: database.db, roots: requireRoots(config), config, hasher }
  return (await createGateway(parts, { orgId: null, actor: 'test', requestId: 'test', address: 'local' } as never, 'all')).plaintext
}

async function metric(service: Service, name: string): Promise<number> {
  const { text: metrics } = await service.call('GET', '/metrics')
  return Number(new RegExp(`^${name} (\\d+)$`, 'm').exec(metrics)?.[1])
}
