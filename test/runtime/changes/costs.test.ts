/** What following the feed costs the database, and that what is spared takes nothing from what receipts and replicas count on. */

import { randomUUID } from 'node:crypto'
import { setTimeout as sleep } from 'node:timers/promises'
import { sql } from 'kysely'
import { pino } from 'pino'
import { Client } from 'pg'
import t, { type Test } from 'tap'
import { newId } from '../../../src/credentials/id.js'
import { Clock } from '../../../src/clock.js'
import { Feed, PLAN_ONCE, POLL, type FeedParts } from '../../../src/runtime/changes/feed.js'
import { Missed } from '../../../src/runtime/changes/resume.js'
import { createDatabase, type TestDatabase } from '../../helpers/database.js'
import { eventually } from '../../helpers/eventually.js'
import { emptyFolder, startDatabase } from '../../helpers/own-server.js'
import { layWire } from '../../helpers/wire.js'

const BOUND_MS = 10_000

t.test('a poll beside a transaction that is open since long reads what is new, and not what has changed since', async (t) => {
  const database = await createDatabase(t)
  const [old, admin, polling] = [await connect(t, database), await connect(t, database), await connect(t, database, 'runtime')]
  await old.query('BEGIN')
  await old.query('INSERT INTO changes (key_id) VALUES (gen_random_uuid())')
  const change = (count: number) => admin.query('INSERT INTO changes (key_id) SELECT gen_random_uuid() FROM generate_series(1, $1::int)', [count])
  for (let i = 0; i < 4; i++) await change(5000)
  await polling.query(PLAN_ONCE)
  await polling.query(`PREPARE poll (pg_snapshot, uuid, boolean, boolean, bytea, text, integer) AS ${POLL.text}`)
  for (const isAnalyzed of [false, true]) {
    if (isAnalyzed) await admin.query('ANALYZE changes')
    const { rows: [{ snapshot }] } = await polling.query('SELECT pg_current_snapshot()::text AS snapshot')
    const poll = `EXECUTE poll('${snapshot}', '${randomUUID()}', false, false, NULL, NULL, NULL)`
    await polling.query(poll)
    const { rows: [{ 'QUERY PLAN': [{ Plan: plan }] }] } = await polling.query(`EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) ${poll}`)
    const blocks = plan['Shared Hit Blocks'] + plan['Shared Read Blocks']
    t.ok(blocks <= 30, `${blocks} blocks`)
    await change(1)
    const found = async () => (await polling.query(poll)).rows[0].changed.length as number
    t.equal(await found(), 1)
    if (!isAnalyzed) continue
    await old.query('COMMIT')
    t.equal(await found(), 2, 'and what it has changed itself is new when it is over')
  }
})

t.test('changes that come one after another are polled together, and none of them is missed', async (t) => {
  const database = await createDatabase(t)
  const { feed, told, counts } = await follow(t, database, { clock: new Clock(), pollMs: 1000 })
  const admin = await connect(t, database)
  const ids = Array.from({ length: 60 }, newId)
  await eventually(() => feed.isFresh())
  const [start, before] = [performance.now(), counts.polls]
  for (const id of ids) {
    await admin.query("WITH made AS (INSERT INTO changes (key_id) VALUES ($1)) SELECT pg_notify('mecha_keys_changes', '')", [id])
    await sleep(4)
  }
  await eventually(() => ids.every((id) => told.has(id)))
  const polls = counts.polls - before
  t.ok(polls <= (performance.now() - start) / 40 + 2, `${polls} polls for ${ids.length} changes`)
})

t.test('while nothing is new, a replica writes its row as often as receipts need, and vouches no longer than they wait for it', async (t) => {
  const database = await createDatabase(t)
  const { feed, passed, counts, beat } = await follow(t, database)
  await eventually(() => feed.isFresh())
  const first = await beat()
  const polled = async () => {
    const { polls } = counts
    await eventually(() => counts.polls > polls + 3)
  }
  await polled()
  t.equal(await beat(), first, 'polls alone write nothing')

  passed.ms = 2000
  await eventually(() => feed.confirmedAt === 2000)
  await polled()
  t.equal(await beat(), first)
  // Its row was written at 0: from then on receipts do not wait for it any more, whatever it has polled since.
  t.ok(feed.isFresh(BOUND_MS))
  t.notOk(feed.isFresh(BOUND_MS + 1))

  passed.ms = 2600
  await eventually(async () => (await beat()) === first + 1)
  await polled()
  t.equal(await beat(), first + 1)
  t.ok(feed.isFresh(BOUND_MS + 2600))
})

t.test('while nothing is new and nobody waits for word, a replica polls and confirms in one statement, as often as receipts need', async (t) => {
  const database = await createDatabase(t)
  const sent: string[] = []
  t.intercept(Client.prototype, 'query', { value: countingNames(sent) })
  const { feed, counts, beat } = await follow(t, database, { clock: new Clock(), pollMs: 20, quietPollMs: () => 100, maxStalenessMs: 400 })
  await eventually(() => feed.isFresh() && counts.polls > 2)
  const [start, polls, beats] = [performance.now(), counts.polls, await beat()]
  sent.length = 0
  await eventually(() => counts.polls >= polls + 5)
  t.ok(performance.now() - start > 350, 'not as often as where somebody waits')
  t.same([...new Set(sent)], ['poll'], 'and nothing else is sent')
  t.ok((await beat()) >= beats + 4)
  feed.poll()
  await eventually(() => sent.includes('confirm'))
})

t.test('a replica whose row is gone, or was written by somebody else, writes it at once', async (t) => {
  const database = await createDatabase(t)
  const { feed, beat } = await follow(t, database)
  await eventually(() => feed.isFresh())
  await sql`UPDATE replicas SET beat = 77`.execute(database.db)
  await eventually(async () => (await beat()) === 78)
  await sql`TRUNCATE replicas`.execute(database.db)
  await eventually(async () => (await beat()) === 1)
})

t.test('a database that takes no writes any more is known for one at the next poll', async (t) => {
  const { database } = await startDatabase(t, emptyFolder(t))
  const { feed } = await follow(t, database)
  await eventually(() => feed.isFresh())
  t.notOk(feed.isAtReadOnlyDatabase)
  await sql`ALTER SYSTEM SET default_transaction_read_only = on`.execute(database.db)
  await sql`SELECT pg_reload_conf()`.execute(database.db)
  await eventually(() => feed.isAtReadOnlyDatabase)
})

t.test('a replica that receipts had stopped to wait for vouches for nothing by what it had polled before', async (t) => {
  const database = await createDatabase(t)
  const wire = await layWire(t, database.runtime)
  const { feed, passed, beat } = await follow(t, { ...database, runtime: wire.through(database.runtime) })
  await eventually(() => feed.isFresh())
  const first = await beat()
  passed.ms = 2000
  await eventually(() => feed.confirmedAt === 2000)
  await wire.hold()
  // For longer than the bound since its row was written, and not since its last poll.
  passed.ms = BOUND_MS + 500
  t.notOk(feed.isFresh())
  wire.release()
  // Its row is written again, and what it polls next has not come yet.
  while ((await beat()) === first) {
    wire.release()
    await wire.hold()
  }
  wire.release()
  await wire.hold()
  t.notOk(feed.isFresh())
  wire.release()
  await eventually(() => feed.isFresh())
})

t.test('a thousand who come back are asked for together, each position once, and nobody by a question that was sent before he came', async (t) => {
  const asked: (readonly string[])[] = []
  let came = 0
  const missed = new Missed(async (positions) => {
    const number = asked.push(positions)
    await sleep(5)
    return new Map(positions.filter((position) => position !== 'unknown').map((position) => [position, { position, number }]))
  })
  const answered = (position: string) => missed.since(position).then((answer) => ({ position, answer }))
  const all = Array.from({ length: 1000 }, () => answered(['a', 'b', 'unknown'][came++ % 3]!))
  const late = sleep(2).then(() => answered('a'))
  t.ok((await Promise.all(all)).every(({ position, answer }) => answer?.position === (position === 'unknown' ? undefined : position)))
  t.ok((await late).answer!.number > 1, 'the first question was on its way')
  t.ok(asked.length <= 20, `${asked.length} questions`)
  t.ok(asked.every((positions) => new Set(positions).size === positions.length))

  const [start, earlier] = [performance.now(), asked.length]
  for (let i = 0; i < 30; i++) await Promise.all([Promise.race([answered('a'), sleep(4)]), sleep(4)])
  t.ok(asked.length - earlier <= (performance.now() - start) / 50 + 2, `${asked.length - earlier} for such as come one after another`)

  const before = asked.length
  await Promise.all(Array.from({ length: 60 }, (_, i) => answered(String(i))))
  t.ok(asked.slice(before).every((positions) => positions.length <= 10), 'no question is long')

  const failing = new Missed(async () => {
    throw new Error('no')
  })
  t.equal(await failing.since('a'), undefined)
})

t.test('what was missed since several positions is told for each of them, whatever else somebody asks for', async (t) => {
  const database = await createDatabase(t)
  const { feed, told } = await follow(t, database, { clock: new Clock() })
  const admin = await connect(t, database)
  await eventually(() => feed.isFresh())
  const change = async (id: string) => {
    await admin.query("WITH made AS (INSERT INTO changes (key_id) VALUES ($1)) SELECT pg_notify('mecha_keys_changes', '')", [id])
    await eventually(() => told.has(id))
    await eventually(() => feed.isFresh())
  }
  const [first, second] = [newId(), newId()]
  const start = feed.position!
  await change(first)
  const between = feed.position!
  await change(second)
  const [token, run, time] = start.split('.')
  // As PostgreSQL reads it, this is no snapshot: the number of its transaction is 0, in another epoch.
  const none = [token, run, time, '4294967296:4294967296:'].join('.')
  const ofAnotherRun = [token, (parseInt(run!, 36) === 1 ? 2 : 1).toString(36), time, start.split('.')[3]].join('.')
  const positions = [start, between, feed.position!, none, ofAnotherRun, 'nonsense', start]
  const ids = async (position: string) => (await feed.missedSince(position))?.map(({ id }) => id).sort()
  await feed.missedSince('nonsense')
  const both = [first, second].sort()
  t.same(await Promise.all(positions.map(ids)), [both, [second], [], undefined, undefined, undefined, both])
})

/** A replica that does nothing but follow, by a clock that stands still until it is set. */
async function follow(t: Test, database: TestDatabase, parts: Partial<FeedParts> = {}) {
  const passed = { ms: 0 }
  const counts = { polls: 0 }
  const told = new Set<string>()
  const feed = new Feed({
    url: database.runtime, replicaId: randomUUID(), pollMs: 25, timeoutMs: 30_000, maxStalenessMs: BOUND_MS, retentionMs: 3_600_000, hashCost: 0,
    onChanges: async (changes) => changes.forEach(({ id }) => told.add(id)),
    onReset: () => {}, onConfirmed: () => {}, onOld: () => {}, onPolled: () => void counts.polls++,
    clock: new Clock({ monotonic: () => passed.ms, wall: () => passed.ms }), log: pino({ level: 'silent' }), ...parts,
  })
  feed.start()
  t.teardown(() => feed.stop())
  const beat = async () => Number((await sql<{ beat: string }>`SELECT beat FROM replicas`.execute(database.db)).rows[0]?.beat)
  return { feed, passed, counts, told, beat }
}

/** A `query` that takes down the names of prepared statements. */
function countingNames(sent: string[]) {
  const query = Reflect.get(Client.prototype, 'query') as (this: Client, ...parameters: unknown[]) => unknown
  return function (this: Client, ...parameters: unknown[]) {
    const { name } = (parameters[0] ?? {}) as { name?: string }
    if (name) sent.push(name)
    return query.apply(this, parameters)
  }
}

async function connect(t: Test, database: TestDatabase, as: 'owner' | 'runtime' = 'owner'): Promise<Client> {
  const client = new Client({ connectionString: database[as] })
  await client.connect()
  t.teardown(() => client.end())
  return client
}
