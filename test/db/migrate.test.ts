import { randomBytes } from 'node:crypto'
import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { sql, type Transaction } from 'kysely'
import t, { type Test } from 'tap'
import { migrate, pendingMigrations } from '../../src/db/migrate.js'
import { openDatabase } from '../../src/db/pool.js'
import type { Database } from '../../src/db/tables.js'
import { PACKAGE_ROOT } from '../../src/package-root.js'
import { createDatabase, type TestDatabase } from '../helpers/database.js'
import { eventually } from '../helpers/eventually.js'
import { migrateBefore } from '../helpers/migrations.js'
import { startService } from '../helpers/service.js'

const FOLDER = join(PACKAGE_ROOT, 'migrations')

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
  const isIndex = (name: string) => name.startsWith('index ')
  t.same(applied.filter((name) => !isIndex(name)).sort(), migrationFiles().map((file) => file.replace(/\.sql$/, '')), 'all of them')
  t.ok(applied.filter(isIndex).length >= 3)
  t.same(await migrate(database.db), [], 'nothing is left')
  t.same(await pendingMigrations(database.db), [])
  const service = await startService(t, {}, database)
  const { plaintext_key } = await service.issue()
  t.match(await service.verify(plaintext_key), { valid: true })
})

t.test('with a transaction of the service that wants its tables in another order, it is the migration that gives way', async (t) => {
  const { applied } = await migrateBeside(t, '0008', 'mechas IN ROW EXCLUSIVE MODE', async (issue) => {
    // The migration's own look for a deadlock is over by now: the next one to look is the one that is undone.
    await sleep(1100)
    await sql`LOCK TABLE keys IN ROW EXCLUSIVE MODE`.execute(issue)
  })
  t.same(applied.slice(0, 2), ['0008_one_history', '0009_control_login'])
})

t.test('no migration waits for locks for longer than all do', async (t) => {
  t.same(migrationFiles().filter((file) => readFileSync(join(FOLDER, file), 'utf8').includes('lock_timeout')), [])
})

t.test('while a migration waits for who reads a table for long, others read it', async (t) => {
  const { applied } = await migrateBeside(t, '0008', 'replicas IN ACCESS SHARE MODE', async (_backup, { db }) => {
    await sql`SELECT FROM replicas`.execute(db)
  })
  t.equal(applied[0], '0008_one_history')
})

t.test('a migration that builds indexes waits for who issues, with nothing that issuing needs next', async (t) => {
  const { applied, waiting } = await migrateBeside(t, '0016', 'idempotency_keys IN ROW EXCLUSIVE MODE', async () => {})
  t.same(waiting, [{ has: null }])
  t.ok(applied.includes('0016_erasures'))
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

interface Waiting {
  readonly has: string[] | null
}

/**
 * Migrates from the migration of that number on, while a transaction holds a lock.
 *
 * @param meanwhile what is done in it once a migration waits for that lock
 * @returns what was applied, and who waited
 */
async function migrateBeside(t: Test, number: string, lock: string, meanwhile: (trx: Transaction<Database>, database: TestDatabase) => Promise<void>): Promise<{ applied: string[]; waiting: Waiting[] }> {
  const database = await createDatabase(t, { empty: true })
  await migrateBefore(database.db, number)
  const { migrating, waiting } = await database.db.transaction().execute(async (trx) => {
    await sql`LOCK TABLE ${sql.raw(lock)}`.execute(trx)
    const migrating = migrate(database.db)
    let waiting: Waiting[] = []
    await eventually(async () => (waiting = await waitsFor(database, lock.split(' ')[0]!)).length > 0)
    await meanwhile(trx, database)
    return { migrating, waiting }
  })
  return { applied: await migrating, waiting }
}

function migrationFiles(): string[] {
  return readdirSync(FOLDER).sort()
}

/** Who waits for a table, and which other tables of issuing they keep others from writing to. */
async function waitsFor({ db }: TestDatabase, table: string): Promise<Waiting[]> {
  const { rows } = await sql<Waiting>`
    SELECT (SELECT array_agg(DISTINCT held.relation::regclass::text) FROM pg_locks held
            WHERE held.pid = waiting.pid AND held.granted AND held.relation IN ('mechas'::regclass, 'keys'::regclass) AND held.mode IN ('ShareLock', 'ShareRowExclusiveLock', 'AccessExclusiveLock')) AS has
    FROM pg_locks waiting WHERE waiting.relation = to_regclass(${table}) AND NOT waiting.granted AND waiting.database = (SELECT oid FROM pg_database WHERE datname = current_database())`.execute(db)
  return rows
}
