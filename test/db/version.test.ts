/** Which servers are served. `npm run test:postgres -- 13 test/db/version.test.ts` runs this on one that is not. */

import { sql } from 'kysely'
import t from 'tap'
import { OLDEST_POSTGRES, unsupportedVersion } from '../../src/db/version.js'
import { createDatabase } from '../helpers/database.js'
import { eventually } from '../helpers/eventually.js'
import { run, start } from '../helpers/process.js'
import { startService, testEnvironment } from '../helpers/service.js'

const database = await createDatabase(t)
const { rows } = await sql<{ number: string }>`SELECT current_setting('server_version_num') AS number`.execute(database.db)
const major = Math.floor(Number(rows[0]!.number) / 10_000)

t.test(`PostgreSQL ${major} is ${major < OLDEST_POSTGRES ? 'refused' : 'served'}, at the start and by migrate`, async (t) => {
  const env = testEnvironment(database, { MIGRATE_DATABASE_URL: database.owner, PORT: '0' })
  const service = await startService(t, {}, database)
  if (major < OLDEST_POSTGRES) {
    const [served, migrated] = await Promise.all([run(t, ['serve'], { env }), run(t, ['migrate'], { env })])
    const line = (setting: string) => new RegExp(`^mecha-keys: ${setting} leads to PostgreSQL ${major}\\.\\d+: PostgreSQL ${OLDEST_POSTGRES} or later is needed\n$`)
    t.match(served, { code: 78, stdout: '', stderr: line('DATABASE_URL') })
    t.match(migrated, { code: 78, stdout: '', stderr: line('MIGRATE_DATABASE_URL') })
    const why = /^(RUNTIME_)?DATABASE_URL leads to PostgreSQL 1\d\.\d+: PostgreSQL 14 or later is needed$/
    t.match(await service.call('GET', '/readyz'), { status: 503, body: { checks: { database_control: why, database_runtime: why } } })
  } else {
    await start(t, ['serve'], { env }).line(/listening at/)
    t.match(await run(t, ['migrate'], { env }), { code: 0 })
    await eventually(async () => (await service.call('GET', '/readyz')).status === 200)
  }
})

t.test('what only speaks the protocol of PostgreSQL is told from it', async (t) => {
  // A function of this name in a schema that is searched first stands in for the answers of other servers.
  const db = database.db
  await sql`CREATE SCHEMA other`.execute(db)
  for (const [answer, refusal] of [
    ['PostgreSQL 18.1 on x86_64-pc-linux-gnu, compiled by gcc', undefined],
    ['PostgreSQL 17.2 (Debian 17.2-1.pgdg120+1) on x86_64-pc-linux-gnu', undefined],
    ['PostgreSQL 19beta1 on aarch64', undefined],
    ['PostgreSQL 15.2-YB-2.23.0.0-b0 on x86_64-pc-linux-gnu', 'DATABASE_URL leads to PostgreSQL 15.2-YB-2.23.0.0-b0 on x86_64-pc-linux-gnu: PostgreSQL 14 or later is needed'],
    ['CockroachDB CCL v24.3.1 (x86_64-pc-linux-gnu)', 'DATABASE_URL leads to CockroachDB CCL v24.3.1 (x86_64-pc-linux-gnu): PostgreSQL 14 or later is needed'],
  ] as const) {
    await sql`CREATE OR REPLACE FUNCTION other.version() RETURNS text LANGUAGE sql AS ${sql.lit(`SELECT '${answer}'::text`)}`.execute(db)
    const found = await db.transaction().execute(async (trx) => {
      await sql`SET LOCAL search_path = other, pg_catalog, public`.execute(trx)
      return unsupportedVersion(trx, 'DATABASE_URL')
    })
    t.equal(found, major < OLDEST_POSTGRES && refusal === undefined ? found : refusal, answer)
  }
})
