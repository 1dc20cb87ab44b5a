/** Events in partitions: how they come to be so, what is made and dropped, and that nobody who writes or reads events notices. */

import { sql, type Kysely } from 'kysely'
import t, { type Test } from 'tap'
import { replayTrail, restoreAuthor } from '../../src/control/restore/replay.js'
import { insertEvents, listEvents } from '../../src/control/audit/store.js'
import { expireEvents } from '../../src/control/audit/partitions.js'
import { migrate } from '../../src/db/migrate.js'
import { openDatabase } from '../../src/db/pool.js'
import type { Database } from '../../src/db/tables.js'
import { newId, publicId } from '../../src/credentials/id.js'
import { createDatabase, type TestDatabase } from '../helpers/database.js'
import { eventually } from '../helpers/eventually.js'
import { migrateBefore } from '../helpers/migrations.js'
import { run } from '../helpers/process.js'
import { startService } from '../helpers/service.js'

const YEAR = 366 * 86_400
const KEPT_FROM_CHANGE = /events can be neither changed nor deleted/

/** Issues a key with the statements that a release sends which does not know `issue_key`. */
async function issueAsBefore(control: Kysely<Database>, mecha: string): Promise<string> {
  const id = newId()
  await control.transaction().execute(async (trx) => {
    await sql`INSERT INTO mechas (handle, org_id) VALUES (${mecha}, 'acme')`.execute(trx)
    await sql`
      INSERT INTO keys (id, kind, org_id, mecha, hash, tag_root, pepper_root, created_at, created_by)
      VALUES (${id}, 'mecha', 'acme', ${mecha}, ${`$argon2id$v=19$m=1024,t=1,p=1$${'A'.repeat(22)}$${'A'.repeat(43)}`}, 'x', 'x', now(), 'operator:alice')`.execute(trx)
    await insertEvents(trx, 'acme', [{ at: new Date(), type: 'key.issued', key_id: id, kind: 'mecha', mecha, actor: 'operator:alice', request_id: 'x', address: 'x', data: {} }])
  })
  return id
}

t.test('the migration copies nothing, and a process of the release before goes on through it', async (t) => {
  const database = await createDatabase(t, { empty: true })
  await migrateBefore(database.db, '0015')
  const service = await startService(t, {}, database)
  const token = await service.token()
  const control = openDatabase({ url: database.control, size: 1, timeoutMs: 10_000, name: 'test' })
  t.teardown(() => control.destroy())
  const first = await issueAsBefore(control, 'sales^acmecorp')
  const { rows: [before] } = await sql<{ file: number }>`SELECT pg_relation_filenode('events')::int AS file`.execute(database.db)
  t.ok((await migrate(database.db)).includes('0015_event_partitions'))
  t.same(await migrate(database.db), [], 'once')
  const { rows: [after] } = await sql<{ file: number }>`SELECT pg_relation_filenode('events_open')::int AS file`.execute(database.db)
  t.same(after, before, 'the file is the one that it was')

  t.equal((await service.call('POST', `/v1/keys/${publicId('mecha', first)}/revoke`, { token })).status, 200)
  await issueAsBefore(control, 'buyer^acmecorp')
  const issue = () => service.call('POST', '/v1/keys', { token, body: { mecha: 'sales^acmecorp' }, headers: { 'idempotency-key': 'one' } })
  for (const status of [201, 201]) t.equal((await issue()).status, status)
  const { events } = (await service.call('GET', '/v1/events', { token })).body
  t.same(events.map(({ type }: any) => type), ['key.issued', 'key.revoked', 'key.issued', 'key.issued', 'key.secret_replaced'])
  t.same(await positions(database.db), [1, 2, 3, 4, 5, 6], 'positions go on where they were')
  const { rows } = await sql<{ name: string }>`SELECT indexrelid::regclass::text AS name FROM pg_index WHERE indrelid = 'events_open'::regclass AND indexrelid::regclass::text LIKE 'events_open%' ORDER BY 1`.execute(database.db)
  t.same(rows.map(({ name }) => name), ['events_open_key_id_position_idx', 'events_open_mecha_position_idx', 'events_open_org_id_position_idx', 'events_open_pkey'], 'those that were there are those that are there')
})

t.test('a migration that waits for who reads events gives up soon, and so nobody waits behind it for long', async (t) => {
  const database = await createDatabase(t, { empty: true })
  await migrateBefore(database.db, '0015')
  await database.db.transaction().execute(async (reader) => {
    await sql`SELECT FROM events`.execute(reader)
    await t.rejects(migrate(database.db, { patienceMs: 0 }), { code: '55P03' })
  })
  t.ok((await migrate(database.db)).includes('0015_event_partitions'), 'and can be run again')
})

t.test('months are made ahead, of what was there too, and whole months that are older are dropped', async (t) => {
  const database = await createDatabase(t)
  const { db } = database
  await writeOver(db, [400, 200, 90, 0])
  const all = await positions(db)
  const first = await expire(t, database)
  t.match(first, { dropped: [], before: null })
  t.same(await partitionsOf(db), [...first.made, 'events_open'].sort())
  const today = new Date()
  t.equal(first.made.at(-1), `events_before_${stamp(new Date(Date.UTC(today.getUTCFullYear(), today.getUTCMonth() + 4)))}`, 'up to three months ahead')
  t.same(await positions(db), all)
  t.equal(await count(db, 'events_open'), 0)
  t.same(await bounds(db), [])
  t.same((await expire(t, database)).made, [], 'once')
  t.match(await expire(t, database, '365d'), { dropped: [] }, 'the first partition ends in the future')

  // As it looks when time has passed: what was there ended half a year ago.
  const [old, recent] = await endedAgo(t, [400, 200, 90, 0], 6)
  t.equal((await expire(t, recent, '365d')).dropped.length, 0)
  t.same(await positions(old), [1, 2, 3, 4])
  const dropped = await expire(t, recent, '120d')
  t.ok(dropped.dropped.length > 1)
  t.ok(new Date(dropped.before!) < new Date(Date.now() - 120 * 86_400_000))
  t.same(await positions(old), [3, 4], 'the events of the months since are there')
  t.match(await expire(t, recent, '120d'), { made: [], dropped: [] }, 'once')
  const long = new Date(Date.now() - 10 * YEAR * 1000)
  await write(old, long)
  t.equal(await count(old, 'events_open'), 0, 'what has an older time still has a place')
})

t.test('an event finds a place when no partition was made for its month, and later becomes a partition like the others', async (t) => {
  const { db } = await createDatabase(t)
  await expireEvents(db, undefined)
  const inAYear = new Date(Date.now() + YEAR * 1000)
  await write(db, inAYear)
  t.equal(await count(db, 'events_open'), 1)
  const { made } = await expireEvents(db, undefined)
  t.equal(made.length, 1)
  t.equal(await count(db, made[0]!), 1)
  t.equal(await count(db, 'events_open'), 0)
})

t.test('after a crash between two steps it goes on, and events are written in between', async (t) => {
  const { db } = await createDatabase(t)
  await writeOver(db, [400, 0])
  await sql`ALTER TABLE events_open ADD CONSTRAINT events_open_bounds CHECK (at < now() + interval '28 days') NOT VALID`.execute(db)
  await write(db, new Date())
  await expireEvents(db, undefined)
  t.same(await bounds(db), [])
  t.same(await positions(db), [1, 2, 3])
  t.equal(await count(db, 'events_open'), 0)
})

t.test('who writes and reads all the time notices nothing of it, and no position is lost', async (t) => {
  const database = await createDatabase(t)
  const service = await startService(t, { DATABASE_TIMEOUT: '10s', MAX_ACTIVE_KEYS_PER_MECHA: '10000' }, database)
  const token = await service.token()
  await writeOver(database.db, [400, 200])
  let isOver = false
  const issued: string[] = []
  const writing = Promise.all([1, 2, 3].map(async () => {
    while (!isOver) issued.push((await service.issue()).key.id)
  }))
  await eventually(() => issued.length > 20)
  await expireEvents(database.db, undefined)
  await eventually(() => issued.length > 60)
  isOver = true
  await writing
  const told: string[] = []
  for (let after = '0'; ; ) {
    const { body } = await service.call('GET', `/v1/events?limit=100&actor=builtin:alice&after=${after}`, { token })
    if (body.events.length === 0) break
    told.push(...body.events.map(({ key_id }: any) => key_id))
    after = body.next_after
  }
  t.same(told.sort(), issued.sort())
  const { code, stdout } = await run(t, ['events'], { env: { DATABASE_URL: database.control } })
  t.equal(code, 0)
  t.same(stdout.trim().split('\n').map((line) => Number(JSON.parse(line).id)), await positions(database.db), 'written out in order, from all partitions')
})

t.test('no partition can be changed or emptied, by its owner either, and the planes have no right to any', async (t) => {
  const database = await createDatabase(t)
  await writeOver(database.db, [90])
  await expireEvents(database.db, undefined)
  const control = openDatabase({ url: database.control, size: 1, timeoutMs: 10_000, name: 'test' })
  const runtime = openDatabase({ url: database.runtime, size: 1, timeoutMs: 10_000, name: 'test' })
  t.teardown(() => Promise.all([control.destroy(), runtime.destroy()]))
  for (const name of [...(await partitionsOf(database.db)), 'events']) {
    for (const statement of [`UPDATE ${name} SET actor = 'nobody'`, `DELETE FROM ${name}`, `DELETE FROM ${name} WHERE false`, `TRUNCATE ${name}`]) {
      await t.rejects(sql.raw(statement).execute(database.db), KEPT_FROM_CHANGE, statement)
      for (const login of [control, runtime]) await t.rejects(sql.raw(statement).execute(login), { code: '42501' }, statement)
    }
    if (name === 'events') continue
    for (const statement of [`SELECT FROM ${name}`, `ALTER TABLE events DETACH PARTITION ${name}`, `DROP TABLE ${name}`]) {
      for (const login of [control, runtime]) await t.rejects(sql.raw(statement).execute(login), { code: '42501' }, statement)
    }
  }
})

t.test('an event of the control plane\'s login has the time of its transaction, and one with another time is refused where it would be of another month', async (t) => {
  const database = await createDatabase(t)
  const service = await startService(t, {}, database)
  const { key } = await service.issue()
  await expireEvents(database.db, undefined)
  await sql`SELECT`.execute(database.db)
  const control = openDatabase({ url: database.control, size: 1, timeoutMs: 10_000, name: 'test' })
  t.teardown(() => control.destroy())
  const forge = async (type: string, at: string) =>
    control.transaction().execute(async (trx) => {
      await sql`UPDATE keys SET name = 'other' || random() WHERE org_id = 'acme'`.execute(trx)
      const event = (kind: string) => sql`INSERT INTO events (at, type, org_id, key_id, kind, mecha, actor, request_id, address) SELECT ${at}::timestamptz, ${kind}, org_id, id, kind, mecha, created_by, 'x', 'x' FROM keys WHERE org_id = 'acme'`
      await event('key.updated').execute(trx)
      if (type !== 'key.updated') await event(type).execute(trx)
    })
  await t.rejects(forge('key.updated', '2999-01-01'), { code: '0A000' })
  await t.resolves(forge('key.updated', new Date().toISOString()))
  await t.rejects(forge('key.issued', new Date().toISOString()), { code: '42501' })
  // Its event was dropped long ago: it is not told once more for that.
  await sql`UPDATE keys SET created_at = created_at - interval '2 years' WHERE org_id = 'acme'`.execute(database.db)
  await database.db.transaction().execute(async (trx) => {
    await sql`SET LOCAL session_replication_role = replica`.execute(trx)
    await sql`TRUNCATE events`.execute(trx)
  })
  await t.rejects(forge('key.issued', new Date().toISOString()), { code: '42501' }, key.id)
})

t.test('a reader who names a time opens the partitions of that time alone, and no reader scans one', async (t) => {
  const [db] = await endedAgo(t, [400, 200, 90, 0], 6)
  await sql`INSERT INTO events (at, type, org_id, key_id, kind, actor, request_id, address)
    SELECT now() - n * interval '6 minutes', 'key.updated', CASE n % 50 WHEN 0 THEN 'acme' ELSE 'other' || n % 50 END, gen_random_uuid(), 'mecha', 'test', 'x', 'x' FROM generate_series(50000, 1, -1) AS n`.execute(db)
  await sql`ANALYZE events`.execute(db)
  const all = await partitionsOf(db)
  const planOf = async (filter: Partial<Parameters<typeof listEvents>[2]>) => {
    const plans: string[] = []
    const explaining = new Proxy(db, {
      get: (target, name) => {
        if (name === 'selectFrom') return (from: any) => explained(target, from, plans)
        const value = Reflect.get(target, name)
        return typeof value === 'function' ? value.bind(target) : value
      },
    })
    await listEvents(explaining, { orgId: 'acme', crews: undefined }, { after: '0', limit: 50, ...filter })
    return plans.join('\n')
  }
  const opened = (plan: string) => all.filter((name) => new RegExp(`\\bon ${name}\\b`).test(plan))
  const day = 86_400_000
  const since = await planOf({ since: new Date(Date.now() - day) })
  t.ok(opened(since).length < all.length - 4, `${opened(since).join()} of ${all.length}`)
  const between = await planOf({ since: new Date(Date.now() - 62 * day), until: new Date(Date.now() - 61 * day) })
  t.ok(opened(between).length <= 2, opened(between).join())
  // A month that has just begun is a page, which is cheaper to scan than its index.
  const isLarge = new Map<string, boolean>()
  for (const name of all) isLarge.set(name, (await count(db, name)) > 1000)
  t.ok([...isLarge.values()].filter(Boolean).length >= 6, `${[...isLarge].join(' ')}`)
  for (const plan of [since, between, await planOf({}), await planOf({ after: '20000' })]) {
    t.match(plan, /Index Scan/)
    for (const [, name] of plan.matchAll(/Seq Scan on (\w+)/g)) t.notOk(isLarge.get(name!), `${name} is scanned, which has many rows:\n${plan}`)
  }
})

t.test('a replay does not take for undone what the database has dropped', async (t) => {
  const [db] = await endedAgo(t, [200, 0], 3)
  await sql`SELECT accept_database('test')`.execute(db)
  const id = newId()
  await sql`INSERT INTO mechas VALUES ('sales^acmecorp', 'acme')`.execute(db)
  await sql`INSERT INTO keys (id, kind, org_id, mecha, hash, tag_root, pepper_root, created_at, created_by)
    VALUES (${id}, 'mecha', 'acme', 'sales^acmecorp', ${`$argon2id$v=19$m=1024,t=1,p=1$${'A'.repeat(22)}$${'A'.repeat(43)}`}, 'r', 'r', now(), 'test')`.execute(db)
  const { publicId } = await import('../../src/credentials/id.js')
  const old = { id: '1', at: new Date(Date.now() - 200 * 86_400_000).toISOString(), org_id: 'acme', key_id: publicId('mecha', id), mecha: 'sales^acmecorp', actor: 'x', request_id: 'x', address: 'x' }
  const file = async function* () {
    yield [
      { ...old, type: 'key.updated', data: { changes: { enabled: { from: true, to: false } } } },
      { ...old, id: '2', type: 'key.secret_replaced', data: {} },
      { ...old, id: '3', at: new Date().toISOString(), type: 'key.updated', data: { changes: { expires_at: { from: null, to: '2999-01-01T00:00:00.000Z' } } } },
    ]
  }
  await expireEvents(db, 30 * 86_400)
  t.match(await replayTrail(db, file(), restoreAuthor()), { events: 3, since: 1, revoked: 0, disabled: 0, shortened: 1 })
})

/** Runs the command, as the owner. */
async function expire(t: Test, database: TestDatabase, retention?: string): Promise<{ made: string[]; dropped: string[]; before: string | null }> {
  const { code, stdout, stderr } = await run(t, ['events', 'expire', '--json'], { env: { MIGRATE_DATABASE_URL: database.owner, ...(retention && { EVENTS_RETENTION: retention }) } })
  t.equal(code, 0, stderr)
  return JSON.parse(stdout)
}

/** A database whose first partition was ended some months ago, with events that are so many days old. */
async function endedAgo(t: Test, days: number[], months: number): Promise<[Kysely<Database>, TestDatabase]> {
  const database = await createDatabase(t)
  const { db } = database
  const now = new Date()
  const start = new Date(Date.UTC(now.getUTCFullYear(), now.getUTCMonth() - months))
  for (let i = 0; i <= months + 1; i++) {
    const [from, to] = [i - 1, i].map((n) => new Date(Date.UTC(start.getUTCFullYear(), start.getUTCMonth() + n))) as [Date, Date]
    const name = sql.id(`events_before_${stamp(to)}`)
    await sql`CREATE TABLE ${name} (LIKE events INCLUDING DEFAULTS, PRIMARY KEY (position))`.execute(db)
    await sql`ALTER TABLE events ATTACH PARTITION ${name} FOR VALUES FROM (${i === 0 ? sql`MINVALUE` : sql.lit(from.toISOString())}) TO (${sql.lit(to.toISOString())})`.execute(db)
  }
  await writeOver(db, days)
  await expireEvents(db, undefined)
  return [db, database]
}

const stamp = (date: Date) => `${date.getUTCFullYear()}_${String(date.getUTCMonth() + 1).padStart(2, '0')}`

async function writeOver(db: Kysely<Database>, daysAgo: number[]): Promise<void> {
  for (const days of daysAgo) await write(db, new Date(Date.now() - days * 86_400_000))
}

async function write(db: Kysely<Database>, at: Date): Promise<void> {
  const event = { at, type: 'key.issued', key_id: newId(), kind: 'mecha' as const, mecha: null, actor: 'test', request_id: newId(), address: 'local', data: {} }
  await db.transaction().execute((trx) => insertEvents(trx, 'acme', [event]))
}

async function positions(db: Kysely<Database>): Promise<number[]> {
  return (await db.selectFrom('events').select('position').orderBy('position').execute()).map(({ position }) => Number(position))
}

async function partitionsOf(db: Kysely<Database>): Promise<string[]> {
  const { rows } = await sql<{ name: string }>`SELECT inhrelid::regclass::text AS name FROM pg_inherits WHERE inhparent = 'events'::regclass`.execute(db)
  return rows.map(({ name }) => name).sort()
}

async function count(db: Kysely<Database>, table: string): Promise<number> {
  return (await sql<{ count: number }>`SELECT count(*)::int AS count FROM ${sql.id(table)}`.execute(db)).rows[0]!.count
}

async function bounds(db: Kysely<Database>): Promise<unknown[]> {
  return (await sql`SELECT conname FROM pg_constraint WHERE conname = 'events_open_bounds'`.execute(db)).rows
}

/** A query that is explained and not executed. */
function explained(db: Kysely<Database>, table: 'events', plans: string[]): any {
  const wrap = (query: any): any =>
    new Proxy(query, {
      get(target, name) {
        if (name === 'execute')
          return async () => {
            for (const row of await target.explain()) plans.push(row['QUERY PLAN'])
            return []
          }
        const value = target[name]
        return typeof value === 'function' ? (...args: unknown[]) => wrap(value.apply(target, args)) : value
      },
    })
  return wrap(db.selectFrom(table))
}
