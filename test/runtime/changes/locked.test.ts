/** A table that somebody has locked: the feed's connections do not add up, though its login has no time-outs of its own. */

import { sql } from 'kysely'
import { Client } from 'pg'
import t from 'tap'
import { createDatabase } from '../../helpers/database.js'
import { eventually } from '../../helpers/eventually.js'
import { fresh, startService } from '../../helpers/service.js'

for (const table of ['changes', 'replicas'] as const)
  t.test(`while ${table} is locked, the feed gives up one connection before it makes the next`, async (t) => {
    const database = await createDatabase(t)
    // Time-outs of logins are kept for one database: this one is a clone, for which nobody has set any.
    t.same((await sql`SELECT FROM pg_db_role_setting WHERE setdatabase = (SELECT oid FROM pg_database WHERE datname = current_database())`.execute(database.db)).rows, [])
    const service = await startService(t, { DATABASE_TIMEOUT: '1s', REVOCATION_MAX_STALENESS: '2s' }, database)
    await fresh(service)
    const admin = new Client({ connectionString: database.owner })
    await admin.connect()
    t.teardown(() => admin.end())
    await admin.query('BEGIN')
    await admin.query(`LOCK TABLE ${table} IN ACCESS EXCLUSIVE MODE`)
    const seen = new Set<number>()
    let most = 0
    await eventually(async () => {
      const { rows } = await sql<{ pid: number }>`SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'mecha-keys feed'`.execute(database.db)
      for (const { pid } of rows) seen.add(pid)
      most = Math.max(most, rows.length)
      return seen.size > 5
    })
    t.ok(most <= 2, `${most} at once, of ${seen.size}`)
    await admin.query('ROLLBACK')
    await fresh(service)
  })
