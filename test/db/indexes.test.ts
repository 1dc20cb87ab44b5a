/** Indexes that `migrate` builds while others write, and what is counted in one. */

import { sql } from 'kysely'
import t from 'tap'
import { rootSecretsStatus } from '../../src/control/keys/root-secrets.js'
import { insertEvents } from '../../src/control/audit/store.js'
import { expireEvents } from '../../src/control/audit/partitions.js'
import { migrate } from '../../src/db/migrate.js'
import { newId } from '../../src/credentials/id.js'
import { createDatabase, type TestDatabase } from '../helpers/database.js'
import { eventually } from '../helpers/eventually.js'
import { start } from '../helpers/process.js'
import { startService } from '../helpers/service.js'

t.test('while an index is built keys are issued, and the next run mends what a killed one left', async (t) => {
  const database = await createDatabase(t)
  const { db } = database
  await sql`DROP INDEX keys_by_crew, events_by_type`.execute(db)
  const service = await startService(t, {}, database)
  const run = () => start(t, ['migrate'], { env: { MIGRATE_DATABASE_URL: database.owner } })
  // An index that is being built is waited for, before it is valid, by nobody, and waits itself for whoever has read before.
  const second = await db.transaction().setIsolationLevel('repeatable read').execute(async (reader) => {
    await sql`SELECT FROM keys`.execute(reader)
    const first = run()
    await eventually(() => isBeingBuilt(database))
    const second = run()
    t.same(await indexesOf(database, 'keys', 'keys_by_crew'), [{ name: 'keys_by_crew', valid: false }])
    t.match(await service.issue(), { key: { status: 'active' } })
    first.signal('SIGKILL')
    await sql`SELECT pg_terminate_backend(pid) FROM pg_stat_progress_create_index WHERE datname = current_database()`.execute(db)
    t.match(await first.ended(), { signal: 'SIGKILL' })
    t.same(await indexesOf(database, 'keys', 'keys_by_crew'), [{ name: 'keys_by_crew', valid: false }], 'it is left behind')
    return second
  })
  t.match(await second.ended(), { code: 0, stdout: 'applied index keys_by_crew, index events_by_type\n' })
  t.same(await indexesOf(database, 'keys', 'keys_by_crew'), [{ name: 'keys_by_crew', valid: true }])
  t.same(await indexesOf(database, 'events', 'events_by_type'), [{ name: 'events_by_type', valid: true }])
  t.match(await run().ended(), { code: 0, stdout: 'nothing to apply\n' })
})

t.test('every partition of events has each index once, whatever became of it between two runs, and new ones come with theirs', async (t) => {
  const database = await createDatabase(t)
  const { db } = database
  const event = { at: new Date(), type: 'key.issued', key_id: newId(), kind: 'mecha' as const, mecha: null, actor: 'test', request_id: newId(), address: 'local', data: {} }
  await db.transaction().execute((trx) => insertEvents(trx, 'acme', [event]))
  await sql`DROP INDEX events_by_type, events_by_actor`.execute(db)
  // As a run leaves it that ends before it comes to `events` itself.
  const { rows: [open] } = await sql<{ number: string }>`SELECT 'events_open'::regclass::oid::text AS number`.execute(db)
  await sql`CREATE INDEX ${sql.id(`events_by_type_${open!.number}`)} ON events_open (org_id, type, position)`.execute(db)
  await expireEvents(db, undefined)
  t.same(await migrate(db), ['index events_by_type', 'index events_by_actor'])
  const { rows } = await sql<{ partition: string; indexes: number; valid: boolean }>`
    SELECT indrelid::regclass::text AS partition, count(*)::int AS indexes, bool_and(indisvalid) AS valid FROM pg_index
    WHERE indrelid IN (SELECT inhrelid FROM pg_inherits WHERE inhparent = 'events'::regclass) GROUP BY indrelid`.execute(db)
  const { length: ofTheTable } = await indexesOf(database, 'events', '')
  t.ok(rows.length > 3)
  // Each has its primary key, which the table of partitions has not.
  for (const { partition, indexes, valid } of rows) t.same({ indexes, valid }, { indexes: ofTheTable + 1, valid: true }, partition)
})

t.test('what is counted in an index is every living key, by each root secret that it needs', async (t) => {
  const { db } = await createDatabase(t)
  await sql`INSERT INTO mechas VALUES ('sales^acmecorp', 'acme')`.execute(db)
  await sql`
    INSERT INTO keys (id, kind, org_id, mecha, hash, tag_root, pepper_root, created_at, created_by, expires_at, revoked_at, revoked_by)
    SELECT gen_random_uuid(), 'mecha', 'acme', 'sales^acmecorp', '$argon2id$v=19$m=1024,t=1,p=1$' || repeat('A', 22) || '$' || repeat('A', 43),
           'root' || n % 3, 'root' || n % 5 || CASE WHEN n % 2 = 0 THEN '/2' ELSE '' END, now(), 'test',
           (ARRAY[NULL, now() + interval '1 hour', now() - interval '1 hour', now() + interval '1 day'])[1 + n % 4],
           CASE WHEN n % 7 = 0 THEN now() END, CASE WHEN n % 7 = 0 THEN 'test' END
    FROM generate_series(1, 420) AS n`.execute(db)
  const needs = (of: string) => Array.from({ length: 421 }, (_, n) => n).filter((n) => n > 0 && n % 7 !== 0 && n % 4 !== 2).map((n) => ({ tag: `root${n % 3}`, pepper: `root${n % 5}` })).filter(({ tag, pepper }) => tag === of || pepper === of)
  const status = await rootSecretsStatus(db, [{ id: 'root0' }, { id: 'root9' }] as never)
  t.same(status.map(({ id }) => id).sort(), ['root0', 'root1', 'root2', 'root3', 'root4', 'root9'])
  for (const { id, tagged, peppered, droppable } of status) {
    t.equal(tagged, needs(id).filter(({ tag }) => tag === id).length, `tagged by ${id}`)
    t.equal(peppered, needs(id).filter(({ pepper }) => pepper === id).length, `peppered by ${id}`)
    t.equal(droppable, id === 'root9')
  }
})

async function isBeingBuilt({ db }: TestDatabase): Promise<boolean> {
  const { rows } = await sql`SELECT FROM pg_stat_progress_create_index WHERE datname = current_database() AND phase = 'waiting for old snapshots'`.execute(db)
  return rows.length > 0
}

async function indexesOf({ db }: TestDatabase, table: string, name: string): Promise<{ name: string; valid: boolean }[]> {
  const { rows } = await sql<{ name: string; valid: boolean }>`
    SELECT relname AS name, indisvalid AS valid FROM pg_index JOIN pg_class ON pg_class.oid = indexrelid
    WHERE indrelid = ${table}::regclass AND starts_with(relname, ${name})`.execute(db)
  return rows
}
