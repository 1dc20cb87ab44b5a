import { randomUUID } from 'node:crypto'
import { sql } from 'kysely'
import t from 'tap'
import { createDatabase, type TestDatabase } from '../../helpers/database.js'
import { eventually } from '../../helpers/eventually.js'
import { isSameAnswer, NOTHING } from '../../helpers/refusals.js'
import { fresh, startService, type Service } from '../../helpers/service.js'
import { layWire } from '../../helpers/wire.js'

const inSeconds = (seconds: number) => new Date(Date.now() + seconds * 1000).toISOString()

t.test('a nonce is taken once with a key, and again with another', async (t) => {
  const service = await startService(t)
  const gateway = await service.gateway()
  const [key, other] = [(await service.issue()).key.id, (await service.issue()).key.id]
  const nonce = randomUUID()
  t.match(await take(service, gateway, { key_id: key, nonce }), { status: 201, body: {}, headers: { 'cache-control': 'no-store' } })
  t.match(await take(service, gateway, { key_id: key, nonce }), { status: 409, body: { code: 'nonce_reused' } })
  t.match(await take(service, gateway, { key_id: key, nonce, expires_at: inSeconds(800) }), { status: 409 }, 'whatever end it is given')
  t.match(await take(service, gateway, { key_id: key, nonce: nonce.toUpperCase() }), { status: 201 }, 'in other letters it is another one')
  t.match(await take(service, gateway, { key_id: other, nonce }), { status: 201 })
})

t.test('of many gateways that ask at once, on any replica, one takes it', async (t) => {
  const first = await startService(t)
  const second = await startService(t, { ROOT_SECRETS: first.config.ROOT_SECRETS!.join() }, first.database)
  const gateways = [await first.gateway(), await first.gateway()]
  const { key } = await first.issue()
  for (let round = 0; round < 10; round++) {
    const asked = { key_id: key.id, nonce: randomUUID(), expires_at: inSeconds(60) }
    const answers = await Promise.all(Array.from({ length: 20 }, (_, place) => take([first, second][place % 2]!, gateways[(place >> 1) % 2]!, asked)))
    t.same(answers.map(({ status }) => status).sort(), [201, ...Array<number>(19).fill(409)])
  }
})

t.test('a gateway of another organization takes no nonce of a key that it does not serve, and learns nothing', async (t) => {
  const service = await startService(t)
  const rival = await service.gateway({ org: 'rival' })
  const { key } = await service.issue()
  const nonce = randomUUID()
  const foreign = await take(service, rival, { key_id: key.id, nonce })
  t.match(foreign, { status: 404, body: { code: 'not_found' } })
  isSameAnswer(t, foreign, await take(service, rival, { key_id: NOTHING.key, nonce }), 'as for no key')
  t.equal((await take(service, await service.gateway(), { key_id: key.id, nonce })).status, 201, 'and has spoiled none')
  t.equal((await take(service, await service.gateway(), { key_id: NOTHING.gateway, nonce })).status, 400, 'a gateway signs nothing')
})

t.test('an end is a time of RFC 3339 that is to come, within a quarter of an hour', async (t) => {
  const service = await startService(t)
  const gateway = await service.gateway()
  const { key } = await service.issue()
  const ask = (expires_at: unknown) => take(service, gateway, { key_id: key.id, nonce: randomUUID(), expires_at })
  for (const good of [inSeconds(5), inSeconds(890), inSeconds(60).replace('Z', '+00:00'), inSeconds(60).replace('Z', '999999Z')]) t.equal((await ask(good)).status, 201, good)
  for (const wrong of [inSeconds(-1), inSeconds(-3600), inSeconds(910), '2999-01-01T00:00:00Z', 'tomorrow', '', 60, null, '2030-02-30T00:00:00Z', '2016-12-31T23:59:60Z', '2030-01-31t12:00:00z'])
    t.match(await ask(wrong), { status: 400, body: { errors: [{ field: 'body.expires_at' }] } }, String(wrong))
})

t.test('400: what is no key id and no nonce', async (t) => {
  const service = await startService(t)
  const gateway = await service.gateway()
  const { key } = await service.issue()
  for (const [body, field] of [
    [{ key_id: undefined }, 'body.key_id'], [{ key_id: 'x' }, 'body.key_id'], [{ nonce: undefined }, 'body.nonce'], [{ nonce: 'x'.repeat(15) }, 'body.nonce'], [{ nonce: 'x'.repeat(129) }, 'body.nonce'],
    [{ nonce: `${'x'.repeat(16)}|` }, 'body.nonce'], [{ nonce: `${'x'.repeat(16)}\n` }, 'body.nonce'], [{ expires_at: undefined }, 'body.expires_at'], [{ more: 1 }, 'body.more'],
  ] as const)
    t.match(await take(service, gateway, Object.assign({ key_id: key.id, nonce: randomUUID() }, body)), { status: 400, body: { errors: [{ field }] } }, JSON.stringify(body))
})

t.test('a nonce that expires is never taken again with the same end, and makes room later', async (t) => {
  const service = await startService(t)
  const gateway = await service.gateway()
  const { key } = await service.issue()
  const asked = { key_id: key.id, nonce: randomUUID(), expires_at: inSeconds(1) }
  t.equal((await take(service, gateway, asked)).status, 201)
  const seen = new Set<number>()
  const isOver = async () => {
    const { status } = await take(service, gateway, asked)
    seen.add(status)
    return status === 400
  }
  await eventually(isOver)
  t.same([...seen], [409, 400])

  const { db } = service.database
  await sql`UPDATE nonces SET expires_at = now() - interval '59 seconds'`.execute(db)
  await sql`INSERT INTO nonces SELECT gen_random_uuid(), sha256(n::text::bytea), now() - interval '61 seconds' FROM generate_series(1, 250) n`.execute(db)
  const left: number[] = []
  for (let i = 0; i < 4; i++) {
    t.equal((await take(service, gateway, { key_id: key.id, nonce: randomUUID() })).status, 201)
    left.push((await db.selectFrom('nonces').select('digest').where('expires_at', '<', sql<Date>`now()`).execute()).length)
  }
  t.same(left, [151, 51, 1, 1], 'a hundred with each call, and none that a statement under way could still mean')
})

t.test('a nonce is kept for as long as any gateway may accept its request, whatever end it is given', async (t) => {
  const service = await startService(t)
  const gateway = await service.gateway()
  const { key } = await service.issue()
  // A gateway that tolerates one second, and a request whose time it has just reached.
  t.equal((await take(service, gateway, { key_id: key.id, nonce: randomUUID(), expires_at: inSeconds(1) })).status, 201)
  const { rows } = await sql<{ seconds: number }>`SELECT extract(epoch FROM expires_at - now())::float AS seconds FROM nonces`.execute(service.database.db)
  // Another one tolerates 400 seconds, and the request may have come that much too early.
  t.ok(rows[0]!.seconds > 800, `it is kept for ${rows[0]!.seconds} s more`)
})

t.test('a nonce that was swept is not taken again when the clock of the database goes back', async (t) => {
  const database = await createDatabase(t)
  const service = await startService(t, {}, database)
  const gateway = await service.gateway()
  const { key } = await service.issue()
  const setClock = await letClockBeSet(database.db)
  const replayed = { key_id: key.id, nonce: randomUUID(), expires_at: inSeconds(460) }
  t.equal((await take(service, gateway, replayed)).status, 201)
  await setClock(3600)
  t.equal((await take(service, gateway, { key_id: key.id, nonce: randomUUID(), expires_at: inSeconds(3600 + 460) })).status, 201)
  t.equal((await database.db.selectFrom('nonces').select('digest').execute()).length, 1, 'it was swept')
  await setClock(0)
  t.match(await take(service, gateway, replayed), { status: 400, body: { errors: [{ field: 'body.expires_at' }] } }, 'not taken again')
  t.match(await take(service, gateway, { ...replayed, expires_at: inSeconds(800) }), { status: 400 }, 'with the end that the most tolerant gateway asks for neither')
  t.equal((await database.db.selectFrom('nonces').select('digest').execute()).length, 1)
  // What was swept is over an hour later in any case: from then on there is nothing to be refused.
  await setClock(1000)
  t.equal((await take(service, gateway, { key_id: key.id, nonce: randomUUID(), expires_at: inSeconds(1460) })).status, 201)
})

t.test('what is kept survives a crash, and is no nonce', async (t) => {
  const service = await startService(t)
  const { key } = await service.issue()
  const nonce = randomUUID()
  await take(service, await service.gateway(), { key_id: key.id, nonce })
  const { rows } = await sql<{ text: string; persistence: string }>`SELECT nonces::text AS text, (SELECT relpersistence FROM pg_class WHERE oid = 'nonces'::regclass) AS persistence FROM nonces`.execute(service.database.db)
  t.match(rows, [{ persistence: 'p' }])
  t.notOk(rows[0]!.text.includes(nonce))
})

t.test('503: without the database no nonce is taken, and what waits for it is bounded', async (t) => {
  const database = await createDatabase(t)
  const wire = await layWire(t, database.runtime)
  const service = await startService(t, { DATABASE_DIRECT_URL: database.runtime, QUEUE_SIZE: '2' }, { ...database, runtime: wire.through(database.runtime) })
  const gateway = await service.gateway()
  const { key } = await service.issue()
  await fresh(service)
  await service.verify('', {}, gateway)
  const asked = { key_id: key.id, nonce: randomUUID() }
  const isHeld = wire.hold()
  const waiting = [take(service, gateway, asked), take(service, gateway, { ...asked, nonce: randomUUID() })]
  await isHeld
  t.match(await take(service, gateway, asked), { status: 503, body: { code: 'overloaded' }, headers: { 'retry-after': '1' } })
  wire.release()
  t.same((await Promise.all(waiting)).map(({ status }) => status), [201, 201])
  wire.cut()
  t.match(await take(service, gateway, { ...asked, nonce: randomUUID() }), { status: 503, body: { code: 'database_unavailable' } })
  wire.restore()
  t.equal((await take(service, gateway, asked)).status, 409)
})

/** Puts a clock in the place of `now()` for what takes nonces, so that it can be set: to some seconds from now. */
async function letClockBeSet(db: TestDatabase['db']): Promise<(seconds: number) => Promise<void>> {
  await sql`CREATE SCHEMA set_clock`.execute(db)
  await sql`CREATE TABLE set_clock.ahead (seconds integer)`.execute(db)
  await sql`INSERT INTO set_clock.ahead VALUES (0)`.execute(db)
  await sql`CREATE FUNCTION set_clock.now() RETURNS timestamptz LANGUAGE sql AS $$ SELECT pg_catalog.now() + make_interval(secs => (SELECT seconds FROM set_clock.ahead)) $$`.execute(db)
  await sql`ALTER FUNCTION take_nonce SET search_path = set_clock, pg_catalog, public`.execute(db)
  return async (seconds) => void (await sql`UPDATE set_clock.ahead SET seconds = ${seconds}`.execute(db))
}

function take(service: Service, token: string, body: object) {
  return service.call('POST', '/v1/nonces', { token, body: { expires_at: inSeconds(60), ...body } })
}
