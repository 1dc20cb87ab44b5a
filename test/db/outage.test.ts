import { sql, type Kysely } from 'kysely'
import t, { type Test } from 'tap'
import { freePort } from '../../src/db/embedded/free-port.js'
import { causeOf, databaseFailure, isConflict, isReadOnly } from '../../src/db/outage.js'
import { openDatabase } from '../../src/db/pool.js'
import type { Database } from '../../src/db/tables.js'
import { createDatabase, type TestDatabase } from '../helpers/database.js'
import { eventually } from '../helpers/eventually.js'
import { fresh, startService, type Answer, type Service } from '../helpers/service.js'
import { startPair } from '../helpers/own-server.js'
import { layWire } from '../helpers/wire.js'

type Db = Kysely<Database>
type Failure = ReturnType<typeof databaseFailure>

/** What makes PostgreSQL, or the client, throw: as nearly as a test can what would do so in production. */
const PROVOKED: readonly [what: string, code: string, failure: Failure, provoke: (t: Test, database: TestDatabase, db: Db) => Promise<unknown>][] = [
  ['nobody listens there', 'ECONNREFUSED', 'unavailable', async (t) => query(open(t, `postgres://a:b@127.0.0.1:${await freePort()}/c`))],
  ['a host that has no address', 'ENOTFOUND', 'unavailable', (t) => query(open(t, 'postgres://a:b@nowhere.invalid/c'))],
  ['a password that is another one', '28P01', 'unavailable', (t, { control }) => query(open(t, withPassword(control, 'another')))],
  ['a database that is not there', '3D000', 'unavailable', (t, { control }) => query(open(t, Object.assign(new URL(control), { pathname: '/elsewhere' }).href))],
  ['no connection is left', '53300', 'unavailable', async (t, database) => {
    await sql`SELECT pg_advisory_lock(1)`.execute(database.db)
    await sql`ALTER DATABASE ${sql.id(await nameOf(database))} CONNECTION LIMIT 0`.execute(database.db)
    return query(open(t, database.control)).finally(async () => sql`ALTER DATABASE ${sql.id(await nameOf(database))} CONNECTION LIMIT -1`.execute(database.db))
  }],
  ['a session that an operator ends', '57P01', 'unavailable', (_t, { db: owner }, db) => during(db, sql`SELECT pg_sleep(30)`, () => sql`SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(30)'`.execute(owner))],
  ['a session that was ended for being idle in a transaction', 'Client has encountered a connection error and is not queryable', 'unavailable', (_t, { db: owner }, db) => db.transaction().execute(async (trx) => {
    const { rows: [session] } = await sql<{ pid: number }>`SELECT pg_backend_pid() AS pid, set_config('idle_in_transaction_session_timeout', '1', true)`.execute(trx)
    await eventually(async () => (await sql`SELECT FROM pg_stat_activity WHERE pid = ${session!.pid}`.execute(owner)).rows.length === 0)
    await new Promise((resolve) => setImmediate(resolve))
    return query(trx)
  })],
  ['two transactions that wait for each other', '40P01', 'unavailable', (_t, _database, db) => deadlock(db)],
  ['a transaction that saw what another one changed', '40001', 'unavailable', (_t, { db: owner }, db) => conflict(owner, db)],
  ['a write to a database that is read-only', '25006', 'unavailable', (_t, _database, db) => db.transaction().setAccessMode('read only').execute((trx) => sql`INSERT INTO mechas (handle, org_id) VALUES ('a^b', 'c')`.execute(trx))],
  ['a lock in a database that is read-only', '25006', 'unavailable', (_t, _database, db) => db.transaction().setAccessMode('read only').execute((trx) => sql`SELECT FROM keys FOR UPDATE`.execute(trx))],
  ['a full disk', '53100', 'unavailable', (_t, _database, db) => raised(db, '53100')],
  ['no memory', '53200', 'unavailable', (_t, _database, db) => raised(db, '53200')],
  ['a disk that cannot be read', '58030', 'unavailable', (_t, _database, db) => raised(db, '58030')],
  ['a server that starts', '57P03', 'unavailable', (_t, _database, db) => raised(db, '57P03')],
  ['a pooler that gave up', '08P01', 'unavailable', (_t, _database, db) => raised(db, '08P01')],
  ['a connection that is silent', 'Query read timeout', 'unavailable', async (t, database) => {
    const wire = await layWire(t, database.control)
    const db = open(t, wire.through(database.control), 200)
    // A slow machine takes longer than that for a new connection.
    await eventually(() => query(db).then(() => true, () => false))
    wire.silence()
    return query(db)
  }],
  ['a connection that breaks', 'Connection terminated unexpectedly', 'unavailable', async (t, database) => {
    const wire = await layWire(t, database.control)
    return during(open(t, wire.through(database.control)), sql`SELECT pg_sleep(32)`, async () => {
      // What has not arrived would be reset, and not ended.
      const { rows } = await sql`SELECT FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(32)' AND state = 'active'`.execute(database.db)
      if (rows.length > 0) wire.cut()
    })
  }],
  ['no connection is free', 'timeout exceeded when trying to connect', 'unavailable', (t, { control }) => {
    const db = open(t, control, 200)
    return db.connection().execute(() => query(db))
  }],
  ['a function that a restore drops under a statement', 'XX000', 'unavailable', (_t, _database, db) => raised(db, 'XX000', 'cache lookup failed for function 16648')],
  ['a bug of PostgreSQL', 'XX000', undefined, (_t, _database, db) => raised(db, 'XX000')],
  ['a statement that takes longer than it may', '57014', 'cancelled', (_t, _database, db) => db.transaction().execute(async (trx) => {
    await sql`SET LOCAL statement_timeout = 20`.execute(trx)
    await sql`SELECT pg_sleep(30)`.execute(trx)
  })],
  ['a statement that an operator cancels', '57014', 'cancelled', (_t, { db: owner }, db) => during(db, sql`SELECT pg_sleep(31)`, () => sql`SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(31)'`.execute(owner))],
  ['a lock that somebody else has for longer than one may wait', '55P03', 'cancelled', (_t, { db: owner }, db) => owner.transaction().execute(async (holder) => {
    await sql`LOCK TABLE keys`.execute(holder)
    await db.transaction().execute(async (trx) => {
      await sql`SET LOCAL lock_timeout = 20`.execute(trx)
      await sql`SELECT FROM keys`.execute(trx)
    })
  })],
  ['a table that is not there', '42P01', undefined, (_t, _database, db) => sql`SELECT FROM elsewhere`.execute(db)],
  ['a right that the login does not have', '42501', undefined, (_t, _database, db) => sql`DELETE FROM events`.execute(db)],
  ['a mistake in a statement', '42601', undefined, (_t, _database, db) => sql`SELECT FROM WHERE`.execute(db)],
  ['a rule of the table', '23514', undefined, (_t, _database, db) => sql`INSERT INTO mechas (handle, org_id) VALUES ('a^b', '')`.execute(db)],
  ['a value of another type', '22P02', undefined, (_t, _database, db) => sql`SELECT 'x'::uuid`.execute(db)],
  ['an exception of our own', 'P0001', undefined, (_t, _database, db) => raised(db, 'P0001')],
]

t.test('what PostgreSQL throws is told apart', async (t) => {
  const database = await createDatabase(t)
  for (const [what, code, failure, provoke] of PROVOKED)
    await t.test(`${what} (${code}): ${failure ?? 'no failure of the database'}`, async (t) => {
      const error = await provoke(t, database, open(t, database.control)).then(() => undefined, (thrown: unknown) => thrown)
      t.equal(causeOf(error), code)
      t.equal(databaseFailure(error), failure)
      t.equal(isConflict(error), /^40/.test(code))
      t.equal(isReadOnly(error), code === '25006')
    })
  t.equal(databaseFailure(Object.assign(new Error(), { code: '08b5e0' })), undefined, 'a code of something else may begin as an SQLSTATE does')
  t.equal(databaseFailure(Object.assign(new Error(), { code: 'ENOENT', syscall: 'read', path: '/a' })), undefined, 'a file')
})

t.test('two transactions that wait for each other: the one that PostgreSQL undoes is made again', async (t) => {
  const database = await createDatabase(t)
  const service = await startService(t, { PLANES: 'control' }, database)
  const { key } = await service.issue()
  const rotated = await database.db.transaction().execute(async (trx) => {
    await sql`SELECT FROM keys WHERE mecha = 'sales^acmecorp' FOR UPDATE`.execute(trx)
    const answer = service.call('POST', `/v1/keys/${key.id}/rotate`, { token: await service.token(), body: {} })
    await eventually(async () => (await waiting(database)) === 1)
    // It holds the Mecha and waits for the key; it notices first that nobody can go on.
    await sql`SET LOCAL deadlock_timeout = '1min'`.execute(trx)
    await sql`SELECT FROM mechas FOR UPDATE`.execute(trx)
    return { answer }
  })
  t.match(await rotated.answer, { status: 201 })
})

t.test('a transaction that PostgreSQL undid for the isolation that an operator asked for is made again', async (t) => {
  const database = await createDatabase(t)
  await sql`ALTER DATABASE ${sql.id(await nameOf(database))} SET default_transaction_isolation = 'repeatable read'`.execute(database.db)
  const service = await startService(t, { PLANES: 'control' }, database)
  const { key } = await service.issue()
  const { answer } = await database.db.transaction().execute(async (trx) => {
    await sql`UPDATE keys SET name = 'by hand'`.execute(trx)
    const answer = service.call('POST', `/v1/keys/${key.id}/revoke`, { token: await service.token(), body: {} })
    await eventually(async () => (await waiting(database)) === 1)
    return { answer }
  })
  t.match(await answer, { status: 200, body: { status: 'revoked', name: 'by hand' } })
})

t.test('a statement that takes too long is cancelled, and is not told as an outage', async (t) => {
  const database = await createDatabase(t)
  const service = await startService(t, { PLANES: 'control', DATABASE_TIMEOUT: '1s' }, database)
  const { key } = await service.issue()
  const token = await service.token()
  await database.db.transaction().execute(async (trx) => {
    await sql`SELECT FROM mechas FOR UPDATE`.execute(trx)
    for (const [url, body] of [['/v1/keys', { mecha: 'sales^acmecorp' }], [`/v1/keys/${key.id}/rotate`, {}], ['/v1/mechas/sales%5Eacmecorp/revoke-keys', {}]] as const)
      t.match(await service.call('POST', url, { token, body }), { status: 503, headers: { 'retry-after': '1' }, body: { code: 'overloaded', detail: /did not finish this in time/ } }, url)
    t.match(await service.call('GET', '/readyz'), { status: 200 }, 'the database is there')
  })
  t.match(logLines(service, 'request refused'), [1, 2, 3].map(() => ({ code: 'overloaded', cause: '57014', err: undefined })))
  t.match(await service.call('GET', `/v1/keys/${key.id}`, { token }), { status: 200, body: { status: 'active' } }, 'nothing of it happened')
})

t.test('a database that takes no writes is no place for traffic, and its calls are refused as in an outage', async (t) => {
  const database = await createDatabase(t)
  const service = await startService(t, {}, database)
  const used = await makeKeys(service)
  await setReadOnly(database, true)
  const why = 'the database is read-only: default_transaction_read_only is on'
  await refusesWrites(t, service, used, why)
  const cause = logLines(service, 'request refused')
  t.ok(cause.length > 0)
  for (const line of cause) t.match(line, { level: 40, code: /^(database_unavailable|feed_stale)$/, err: undefined, stack: undefined })
  t.notOk(/"stack":[^}]*25006/.test(service.logs()), 'no stack tells of it')
  await setReadOnly(database, false)
  await eventually(async () => (await service.call('GET', '/readyz')).status === 200)
  t.equal((await service.issue()).key.status, 'active')
})

t.test('a standby is no place for traffic either', async (t) => {
  const { primary, caughtUp, standby } = await startPair(t)
  const before = await startService(t, {}, primary)
  const made = await makeKeys(before)
  await before.app.close()
  await caughtUp()
  const service = await startService(t, { ROOT_SECRETS: before.config.ROOT_SECRETS!.join() }, await standby())
  await refusesWrites(t, service, made, /^the database is a standby, which cannot be written to: lead (RUNTIME_)?DATABASE_URL to the primary$/)
  const ask = () => service.call('POST', '/v1/verify', { token: made.gateway, body: { key: made.used.plaintext_key } })
  // Its feed cannot confirm that it follows, and another server may be the primary by now.
  await eventually(async () => (await ask()).status === 503)
  t.match(await ask(), { status: 503, body: { code: 'feed_stale' } })
})

async function makeKeys(service: Service) {
  const [first, second, third] = [await service.issue(), await service.issue(), await service.issue()]
  const gateway = await service.gateway()
  await fresh(service)
  if (!(await service.verify(first.plaintext_key, {}, gateway)).valid) throw new Error('it is not valid to begin with')
  const edge = (await service.call('GET', '/v1/gateways', { token: await service.token() })).body.gateways[0].id as string
  return { used: first, unused: second, third, gateway, edge }
}

async function refusesWrites(t: Test, service: Service, { used, unused, third, gateway, edge }: Awaited<ReturnType<typeof makeKeys>>, why: string | RegExp): Promise<void> {
  const token = await service.token()
  // Connections that were ended may not have been noticed yet.
  await eventually(async () => !/does not answer/.test((await service.call('GET', '/readyz')).text))
  t.match(await service.call('GET', '/readyz'), { status: 503, body: { ready: false, checks: { database_control: why, database_runtime: why } } })
  const refused: [string, Promise<Answer>][] = [
    ['issue', service.call('POST', '/v1/keys', { token, body: { mecha: 'sales^acmecorp' }, headers: { 'idempotency-key': 'one' } })],
    ['update', service.call('PATCH', `/v1/keys/${used.key.id}`, { token, body: { enabled: false } })],
    ['rotate', service.call('POST', `/v1/keys/${used.key.id}/rotate`, { token, body: {} })],
    ['revoke', service.call('POST', `/v1/keys/${third.key.id}/revoke`, { token, body: {} })],
    ['kill switch', service.call('POST', '/v1/mechas/sales%5Eacmecorp/revoke-keys', { token, body: {} })],
    ['create a gateway', service.call('POST', '/v1/gateways', { token, body: { name: 'another' } })],
    ['revoke a gateway', service.call('POST', `/v1/gateways/${edge}/revoke`, { token, body: {} })],
    ['a first use', service.call('POST', '/v1/verify', { token: gateway, body: { key: unused.plaintext_key } })],
    ['a nonce', service.call('POST', '/v1/nonces', { token: gateway, body: { key_id: used.key.id, nonce: 'n'.repeat(22), expires_at: new Date(Date.now() + 60_000).toISOString() } })],
    ['a holder', service.call('POST', '/v1/revoke-token', { body: `token=${used.plaintext_key}`, headers: { 'content-type': 'application/x-www-form-urlencoded' } })],
  ]
  for (const [what, answer] of refused) t.match(await answer, { status: 503, headers: { 'retry-after': '1' }, body: { code: /^(database_unavailable|feed_stale)$/ } }, what)
  for (const url of ['/v1/keys', `/v1/keys/${used.key.id}`, '/v1/events', '/v1/gateways']) t.match(await service.call('GET', url, { token }), { status: 200 }, url)
  t.notOk(service.logs().includes('internal_error'))
}

function open(t: Pick<Test, 'teardown'>, url: string, timeoutMs = 10_000): Db {
  const db = openDatabase({ url, size: timeoutMs === 200 ? 1 : 3, timeoutMs, name: 'test' })
  t.teardown(() => db.destroy())
  return db
}

function query(db: Db) {
  return sql`SELECT 1`.execute(db)
}

/** Something that happens while a statement is under way. */
async function during(db: Db, statement: ReturnType<typeof sql>, act: () => Promise<unknown>): Promise<unknown> {
  const result = statement.execute(db)
  result.catch(() => {})
  let isOver = false
  result.then(() => (isOver = true), () => (isOver = true))
  // Until it has an effect: the statement may not have begun.
  while (!isOver) {
    await new Promise((resolve) => setTimeout(resolve, 20))
    await act()
  }
  return result
}

function raised(db: Db, code: string, message = 'as if') {
  return sql.raw(`DO $$ BEGIN RAISE EXCEPTION '${message}' USING ERRCODE = '${code}'; END $$`).execute(db)
}

/** Two sessions take two locks in opposite order. */
async function deadlock(db: Db): Promise<void> {
  let bothHold = () => {}
  let holders = 0
  const all = new Promise<void>((resolve) => (bothHold = resolve))
  const take = (first: number, second: number) =>
    db.transaction().execute(async (trx) => {
      await sql`SELECT pg_advisory_xact_lock(${first}::bigint)`.execute(trx)
      if (++holders === 2) bothHold()
      await all
      await sql`SELECT pg_advisory_xact_lock(${second}::bigint)`.execute(trx)
    })
  const results = await Promise.allSettled([take(11, 12), take(12, 11)])
  const failed = results.find(({ status }) => status === 'rejected')
  if (failed) throw (failed as PromiseRejectedResult).reason
}

async function conflict(owner: Db, db: Db): Promise<void> {
  await sql`INSERT INTO mechas (handle, org_id) VALUES ('conflict^acmecorp', 'acme')`.execute(db)
  await db.transaction().setIsolationLevel('repeatable read').execute(async (trx) => {
    await sql`SELECT FROM mechas`.execute(trx)
    await sql`UPDATE mechas SET created_at = now()`.execute(owner)
    await sql`SELECT FROM mechas FOR UPDATE`.execute(trx)
  })
}

async function setReadOnly(database: TestDatabase, on: boolean): Promise<void> {
  await database.db.transaction().execute(async (trx) => {
    await sql`SET LOCAL transaction_read_only = off`.execute(trx)
    await sql`ALTER DATABASE ${sql.id(await nameOf(database))} SET default_transaction_read_only = ${sql.lit(on ? 'on' : 'off')}`.execute(trx)
  })
  const others = sql`SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() AND usename <> current_user`
  await others.execute(database.db)
}

async function nameOf({ db }: TestDatabase): Promise<string> {
  const { rows } = await sql<{ name: string }>`SELECT current_database() AS name`.execute(db)
  return rows[0]!.name
}

/** How many sessions of this database wait for a lock. */
async function waiting({ db }: TestDatabase): Promise<number> {
  const { rows } = await sql<{ count: number }>`SELECT count(*)::int AS count FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'`.execute(db)
  return rows[0]!.count
}

function withPassword(url: string, password: string): string {
  return Object.assign(new URL(url), { password }).href
}

function logLines(service: Service, msg: string): Record<string, unknown>[] {
  return service.logs().split('\n').filter(Boolean).map((line) => JSON.parse(line) as Record<string, unknown>).filter((line) => line['msg'] === msg)
}
