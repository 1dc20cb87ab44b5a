/** A change of many keys: applied in slices, in order, and up to a size one by one. */

import { IncomingMessage, ServerResponse } from 'node:http'
import { Socket } from 'node:net'
import { monitorEventLoopDelay } from 'node:perf_hooks'
import { sql } from 'kysely'
import t, { type Test } from 'tap'
import { newId } from '../../../src/credentials/id.js'
import { Clock } from '../../../src/clock.js'
import { inSlices, piecesOf } from '../../../src/runtime/changes/slices.js'
import { ChangeStreams } from '../../../src/runtime/changes/sse.js'
import { applied, createDatabase, type TestDatabase } from '../../helpers/database.js'
import { listen } from '../../helpers/events.js'
import { eventually } from '../../helpers/eventually.js'
import { fresh, startService } from '../../helpers/service.js'

t.test('work in slices lets everything else have its turn, and follows what grows meanwhile', async (t) => {
  const turns = countTurns(t)
  const items = new Set(Array.from({ length: 100 }, (_, i) => i))
  const perTurn = new Map<number, number[]>()
  const done = inSlices(items, 30, (item) => {
    perTurn.set(turns.now(), [...(perTurn.get(turns.now()) ?? []), item])
  })
  t.equal(perTurn.get(0)?.length, 30, 'the first slice is at once')
  for (let i = 100; i < 110; i++) items.add(i)
  await done
  t.ok([...perTurn.values()].every(({ length }) => length <= 30))
  t.same([...perTurn.values()].flat(), Array.from({ length: 110 }, (_, i) => i), 'in order')
  t.same([...piecesOf([1, 2, 3, 4, 5], 2)], [[1, 2], [3, 4], [5]])
  t.same([...piecesOf([], 2)], [])
})

t.test('400 streams are told in slices, with the same bytes; one that begins meanwhile is told too', async (t) => {
  const clock = new Clock()
  const feed = { position: 'a.b.c.1:1:', confirmedAt: 0, now: () => 0, isFresh: () => true, historyToken: 'a', poll: () => {} }
  const streams = new ChangeStreams({ feed, clock, max: 1000, heartbeatMs: 1000 })
  t.teardown(() => streams.end())
  const turns = countTurns(t)
  const written: { turn: number; chunk: unknown }[] = []
  const begin = () => {
    const raw = new ServerResponse(new IncomingMessage(new Socket()))
    streams.open({ id: newId(), org_id: 'acme', expires_at: null }, raw, {}, [])
    const write = raw.write.bind(raw) as (chunk: unknown) => boolean
    raw.write = ((chunk: unknown) => (written.push({ turn: turns.now(), chunk }), write(chunk))) as typeof raw.write
  }
  for (let i = 0; i < 400; i++) begin()
  const told = streams.changed([{ id: newId(), kind: 'mecha', org_id: 'acme' }], 'a.b.c.2:2:')
  begin()
  await told
  t.equal(written.length, 401)
  t.equal(new Set(written.map(({ chunk }) => chunk)).size, 1, 'encoded once')
  const counts = written.reduce((all, { turn }) => all.set(turn, (all.get(turn) ?? 0) + 1), new Map<number, number>())
  t.ok([...counts.values()].every((count) => count <= 50), `${[...counts.values()].join()} in one turn`)
})

t.test('that all is well is written once for all streams, but for how long ago each was opened', async (t) => {
  let reads = 0
  const feed = {
    get position() {
      reads++
      return 'a.b.c.1:1:'
    },
    confirmedAt: 0, now: () => 0, isFresh: () => true, historyToken: 'a', poll: () => void polls++,
  }
  let polls = 0
  let at = 0
  const streams = new ChangeStreams({ feed, clock: new Clock({ monotonic: () => at, wall: () => at }), max: 1000, heartbeatMs: 1000 })
  t.teardown(() => streams.end())
  const written: string[] = []
  for (let i = 0; i < 100; i++) {
    const raw = new ServerResponse(new IncomingMessage(new Socket()))
    at = i
    streams.open({ id: newId(), org_id: 'acme', expires_at: null }, raw, {}, [])
    raw.write = ((chunk: unknown) => written.push(String(chunk)) > 0) as typeof raw.write
  }
  t.equal(polls, 1, 'the feed may have been silent until the first came')
  const told = async (confirmedAt: number, history = 'a') => {
    Object.assign(feed, { confirmedAt, historyToken: history })
    at += 1000
    written.length = reads = 0
    streams.confirmed()
    await eventually(() => written.length === 100)
  }
  await told(5000)
  t.equal(reads, 1)
  const database_time = '1970-01-01T00:00:00.000Z'
  t.same(written, written.map((_, i) => `id: a.b.c.1:1:\nevent: confirmed\ndata: ${JSON.stringify({ confirmed_ms: 5000 - i, database_time, history: 'a' })}\n\n`))
  await told(6000.9)
  t.match(written[0], /"confirmed_ms":6000,/, 'and never later than it was')
  await told(6000.9, 'b')
  t.match(written[99], /"history":"b"/)
})

t.test('what is told is applied before it counts, and more than can be told is a reset', async (t) => {
  const database = await createDatabase(t)
  const service = await startService(t, { MAX_ACTIVE_KEYS_PER_MECHA: '10000' }, database)
  const issued = [await service.issue(), await service.issue()]
  const gateway = await service.gateway()
  await fresh(service)
  const url = await service.app.listen({ host: '127.0.0.1', port: 0 })
  const stream = await listen(t, url, gateway)
  await stream.heard('confirmed')
  await addKeys(database, 11_000)
  const delay = monitorEventLoopDelay({ resolution: 5 })
  for (const [changed, expected] of [[5000, 'listed'], [11_000, 'reset']] as const) {
    for (const { plaintext_key } of issued) t.match(await service.verify(plaintext_key, {}, gateway), { valid: true, metadata: {} })
    const before = stream.events.length
    delay.enable()
    const name = `changed with ${changed}`
    await database.db.transaction().execute(async (trx) => {
      await sql`UPDATE keys SET name = ${name} WHERE id IN (SELECT id FROM keys WHERE created_by = 'test' LIMIT ${changed})`.execute(trx)
      await sql`UPDATE keys SET metadata = ${JSON.stringify({ name })} WHERE created_by <> 'test' AND kind = 'mecha'`.execute(trx)
    })
    await applied(database)
    delay.disable()
    t.comment(`${changed} changes: the event loop was held up for ${Math.round(delay.max / 1e6)} ms at most`)
    delay.reset()
    for (const { plaintext_key } of issued) t.match(await service.verify(plaintext_key, {}, gateway), { valid: true, metadata: { name } })
    if (expected === 'listed') {
      const told = () => stream.events.slice(before)
      await eventually(() => told().some(({ event }) => event === 'changed') && told().at(-1)!.event === 'confirmed')
      const listed = told().filter(({ event }) => event === 'changed').flatMap(({ data }) => (JSON.parse(data) as { key_ids: string[] }).key_ids)
      t.equal(new Set(listed).size, changed + issued.length, 'all of it is told, and then confirmed')
      t.ok(issued.every(({ key }) => listed.includes(key.id as string)))
    } else await eventually(() => stream.isOver())
  }
})

t.test('a key among more changes than are told is refused as soon as its receipt is complete', async (t) => {
  const database = await createDatabase(t)
  const service = await startService(t, {}, database)
  const { key, plaintext_key } = await service.issue()
  await fresh(service)
  t.match(await service.verify(plaintext_key), { valid: true })
  await addKeys(database, 10_001)
  await sql`UPDATE keys SET revoked_at = now(), revoked_by = 'psql' WHERE kind = 'mecha'`.execute(database.db)
  const { body } = await service.call('GET', `/v1/keys/${key.id}`, { token: await service.token() })
  t.equal(body.status, 'revoked')
  await applied(database)
  t.match(await service.verify(plaintext_key), { code: 'revoked' })
})

/** Counts turns of the event loop, from 0. */
function countTurns(t: Test): { now: () => number } {
  let turn = 0
  let isOver = false
  const next = () => {
    turn++
    if (!isOver) setImmediate(next)
  }
  setImmediate(next)
  t.teardown(() => (isOver = true))
  return { now: () => turn }
}

/** Living keys that nobody has the secrets of. */
async function addKeys({ db }: TestDatabase, count: number): Promise<void> {
  const hash = `$argon2id$v=19$m=1024,t=1,p=1$${'A'.repeat(22)}$${'A'.repeat(43)}`
  await sql`INSERT INTO mechas (handle, org_id) VALUES ('many^acmecorp', 'acme')`.execute(db)
  await sql`
    INSERT INTO keys (id, kind, org_id, mecha, hash, tag_root, pepper_root, created_at, created_by)
    SELECT gen_random_uuid(), 'mecha', 'acme', 'many^acmecorp', ${hash}, 'none', 'none', now(), 'test' FROM generate_series(1, ${count}::int)`.execute(db)
}
