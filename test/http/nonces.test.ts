import { randomUUID } from 'node:crypto'
import { sql } from 'kysely'
import t from 'tap'
import { createDatabase } from '../helpers/database.js'
import { eventually } from '../helpers/eventually.js'
import { isSameAnswer, NOTHING } from '../helpers/refusals.js'
import { fresh, startService, type Service } from '../helpers/service.js'
import { layWire } from '../helpers/wire.js'

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
  await sql`INSERT INTO nonces SELECT gen_random_uuid(), sha256(n::text::bytea), now() - interval '61 seconds' FROM generate_series(1, 25) n`.execute(db)
  const left: number[] = []
  for (let i = 0; i < 4; i++) {
    t.equal((await take(service, gateway, { key_id: key.id, nonce: randomUUID() })).status, 201)
    left.push((await db.selectFrom('nonces').select('digest').where('expires_at', '<', sql<Date>`now()`).execute()).length)
  }
  t.same(left, [16, 6, 1, 1], 'ten with each call, and none that a statement under way could still mean')
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

function take(service: Service, token: string, body: object) {
  return service.call('POST', '/v1/nonces', { token, body: { expires_at: inSeconds(60), ...body } })
}
