import { randomBytes } from 'node:crypto'
import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { sql } from 'kysely'
import t from 'tap'
import { migrate, pendingMigrations } from '../../src/db/migrate.js'
import { openDatabase } from '../../src/db/pool.js'
import { PACKAGE_ROOT } from '../../src/package-root.js'
import { createDatabase, type TestDatabase } from '../helpers/database.js'
import { eventually } from '../helpers/eventually.js'
import { migrateBefore } from '../helpers/migrations.js'
import { startService } from '../helpers/service.js'

t.test('from an empty database, by eight at once and again: each migration is applied once', async (t) => {
  const database = await createDatabase(t, { empty: true })
  const all = await Promise.all(
    Array.from({ length: 8 }, async () => {
      const db = openDatabase({ url: database.owner, size: 1, timeoutMs: 60_000, name: 'test migrate' })
      return migrate(db).finally(() => db.destroy())
    }),
  )
  const applied = all.flat()
  t.equal(applied.length, new Set(applied).size, 'none twice')
  t.same(applied.toSorted(), applied.toSorted().map((name) => name), 'all by name')
  t.ok(applied.length >= 3)
  t.same(await migrate(database.db), [], 'nothing is left')
  t.same(await pendingMigrations(database.db), [])
  const service = await startService(t, {}, database)
  const { plaintext_key } = await service.issue()
  t.match(await service.verify(plaintext_key), { valid: true })
})

t.test('with a transaction of the service that wants its tables in another order, it is the migration that gives way', async (t) => {
  const database = await createDatabase(t, { empty: true })
  await migrateBefore(database.db, '0008')
  const { migrating } = await database.db.transaction().execute(async (issue) => {
    await sql`LOCK TABLE mechas IN ROW EXCLUSIVE MODE`.execute(issue)
    const migrating = migrate(database.db)
    await eventually(() => isWaitedFor(database, 'mechas'))
    // The migration's own look for a deadlock is over by now: the next one to look is the one that is undone.
    await sleep(1100)
    await sql`LOCK TABLE keys IN ROW EXCLUSIVE MODE`.execute(issue)
    return { migrating }
  })
  t.same((await migrating).slice(0, 2), ['0008_one_history', '0009_control_login'])
})

t.test('no migration waits for locks for longer than all do', async (t) => {
  const folder = join(PACKAGE_ROOT, 'migrations')
  t.same(readdirSync(folder).filter((file) => readFileSync(join(folder, file), 'utf8').includes('lock_timeout')), [])
})

t.test('while a migration waits for who reads a table for long, others read it', async (t) => {
  const database = await createDatabase(t, { empty: true })
  await migrateBefore(database.db, '0008')
  const { migrating } = await database.db.transaction().execute(async (backup) => {
    await sql`LOCK TABLE replicas IN ACCESS SHARE MODE`.execute(backup)
    const migrating = migrate(database.db)
    await eventually(() => isWaitedFor(database, 'replicas'))
    await sql`SELECT FROM replicas`.execute(database.db)
    return { migrating }
  })
  t.equal((await migrating)[0], '0008_one_history')
})

t.test('a migration that builds indexes waits for who issues, with nothing that issuing needs next', async (t) => {
  const database = await createDatabase(t, { empty: true })
  await migrateBefore(database.db, '0016')
  const { migrating } = await database.db.transaction().execute(async (issue) => {
    await sql`LOCK TABLE idempotency_keys IN ROW EXCLUSIVE MODE`.execute(issue)
    const migrating = migrate(database.db)
    let waiting: { has: string[] | null }[] = []
    await eventually(async () => (waiting = await waitsFor(database, 'idempotency_keys')).length > 0)
    t.same(waiting, [{ has: null }])
    return { migrating }
  })
  t.ok((await migrating).includes('0016_erasures'))
})

t.test('a service whose database is behind says so and is not ready', async (t) => {
  const service = await startService(t, {}, await createDatabase(t))
  await sql`DELETE FROM kysely_migration WHERE name = '0003_events'`.execute(service.database.db)
  t.match(await service.call('GET', '/readyz'), { status: 503, body: { ready: false, checks: { database_control: 'run mecha-keys migrate: 0003_events missing' } } })
})

t.test('a service on a database that was never migrated is not ready', async (t) => {
  const service = await startService(t, {}, await createDatabase(t, { empty: true }))
  t.match(await service.call('GET', '/readyz'), { status: 503, body: { checks: { database_runtime: /run mecha-keys migrate/ } } })
})

t.test('where the two roles are there, an owner who may not make roles migrates', async (t) => {
  const database = await createDatabase(t, { empty: true })
  const url = new URL(database.owner)
  const [name, owner, password] = [url.pathname.slice(1), `owner_${randomBytes(4).toString('hex')}`, randomBytes(16).toString('hex')]
  await sql`CREATE ROLE ${sql.id(owner)} LOGIN PASSWORD ${sql.lit(password)}`.execute(database.db)
  await sql`ALTER DATABASE ${sql.id(name)} OWNER TO ${sql.id(owner)}`.execute(database.db)
  t.teardown(async () => {
    await sql`ALTER DATABASE ${sql.id(name)} OWNER TO CURRENT_USER`.execute(database.db)
    await sql`REASSIGN OWNED BY ${sql.id(owner)} TO CURRENT_USER`.execute(database.db)
    await sql`DROP OWNED BY ${sql.id(owner)}`.execute(database.db)
    await sql`DROP ROLE ${sql.id(owner)}`.execute(database.db)
  })
  const db = openDatabase({ url: Object.assign(url, { username: owner, password }).href, size: 1, timeoutMs: 60_000, name: 'test migrate' })
  await migrate(db).finally(() => db.destroy())
  const service = await startService(t, {}, database)
  const { plaintext_key } = await service.issue()
  t.match(await service.verify(plaintext_key), { valid: true })
})

async function isWaitedFor({ db }: TestDatabase, table: string): Promise<boolean> {
  const { rows } = await sql`SELECT FROM pg_locks WHERE relation = to_regclass(${table}) AND NOT granted AND database = (SELECT oid FROM pg_database WHERE datname = current_database())`.execute(db)
  return rows.length > 0
}

/** Who waits for a table, and which other tables of issuing they keep others from writing to. */
async function waitsFor({ db }: TestDatabase, table: string): Promise<{ has: string[] | null }[]> {
  const { rows } = await sql<{ has: string[] | null }>`
    SELECT (SELECT array_agg(DISTINCT held.relation::regclass::text) FROM pg_locks held
            WHERE held.pid = waiting.pid AND held.granted AND held.relation IN ('mechas'::regclass, 'keys'::regclass) AND held.mode IN ('ShareLock', 'ShareRowExclusiveLock', 'AccessExclusiveLock')) AS has
    FROM pg_locks waiting WHERE waiting.relation = to_regclass(${table}) AND NOT waiting.granted AND waiting.database = (SELECT oid FROM pg_database WHERE datname = current_database())`.execute(db)
  return rows
}
