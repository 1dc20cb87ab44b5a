/** Statements that are planned once for each connection, where whatever stands between lets them be. */

import { sql } from 'kysely'
import t from 'tap'
import { loadConfig, preparesStatements } from '../../src/config.js'
import { insertIssue } from '../../src/control/keys/issue-store.js'
import { openDatabase, preparedAs } from '../../src/db/pool.js'
import { newId } from '../../src/credentials/id.js'
import { findCredentials } from '../../src/runtime/verify/store.js'
import { createDatabase } from '../helpers/database.js'
import { testEnvironment } from '../helpers/service.js'

const database = await createDatabase(t)

t.test('what is marked is prepared, and nothing else', async (t) => {
  for (const prepares of [true, false]) {
    const db = openDatabase({ url: database.runtime, size: 1, timeoutMs: 5000, name: 'test', prepares })
    t.teardown(() => db.destroy())
    // Enough for PostgreSQL to settle on a plan.
    for (let i = 0; i < 8; i++) t.match(await findCredentials(db, i % 2 ? [] : ['00000000-0000-7000-8000-000000000000']), { found: [] })
    await sql`SELECT 1`.execute(db)
    const { rows } = await sql<{ name: string }>`SELECT name FROM pg_prepared_statements`.execute(db)
    t.same(rows, prepares ? [{ name: 'find_credentials' }] : [])
    t.same((await sql<{ one: string }>`SELECT ${'x'}::text AS one ${preparedAs('other')}`.execute(db)).rows, [{ one: 'x' }])
  }
})

t.test('what issues a key is', async (t) => {
  const db = openDatabase({ url: database.control, size: 1, timeoutMs: 5000, name: 'test', prepares: true })
  t.teardown(() => db.destroy())
  for (let i = 0; i < 8; i++)
    t.match(await insertIssue(db, {
      key_id: newId(), key_hash: `$argon2id$v=19$m=64,t=1,p=1$${'A'.repeat(22)}$${'A'.repeat(43)}`, key_tag_root: 'x', key_pepper_root: 'x', of_org: 'acme', of_mecha: 'sales^acmecorp', key_name: null, key_scopes: [],
      key_metadata: {}, is_claimed: true, most_keys: 7, ends_at: null, life_seconds: null, longest_seconds: null, actor: 'test', request_id: 'x', address: 'x',
    }, undefined), i < 7 ? { key: { mecha: 'sales^acmecorp' } } : { refused: 'limit' })
  t.same((await sql`SELECT name FROM pg_prepared_statements`.execute(db)).rows, [{ name: 'issue_key' }])
})

t.test('they are where the feed has no other way to the database, and where they are asked for', async (t) => {
  const isOn = (environment: Record<string, string>) => preparesStatements(loadConfig(testEnvironment(database, environment)))
  t.equal(isOn({}), true)
  t.equal(isOn({ DATABASE_DIRECT_URL: database.runtime }), false)
  t.equal(isOn({ DATABASE_DIRECT_URL: database.runtime, PREPARED_STATEMENTS: 'on' }), true)
  t.equal(isOn({ PREPARED_STATEMENTS: 'off' }), false)
})
