/** A database of a test file's own, cloned from the migrated template. */

import { randomBytes } from 'node:crypto'
import type { Kysely } from 'kysely'
import { Pool } from 'pg'
import type { Test } from 'tap'
import { openDatabase } from '../../src/db/pool.js'
import type { Database } from '../../src/db/tables.js'

/** The planes' logins on the test server. Made up, as the server is. */
export const LOGINS = {
  control: 'mecha_keys_test_control:control-of-a-throw-away-database',
  runtime: 'mecha_keys_test_runtime:runtime-of-a-throw-away-database',
} as const

export interface TestDatabase {
  readonly owner: string
  readonly control: string
  readonly runtime: string
  /** As the owner of the tables, for what an operator would do by hand. */
  readonly db: Kysely<Database>
}

/** The URL of a database on the test server, as its superuser or as a `user:password`. */
export function urlFor(serverUrl: string, database: string, credentials?: string): string {
  const url = new URL(serverUrl)
  url.pathname = `/${database}`
  if (credentials) [url.username, url.password] = credentials.split(':') as [string, string]
  return url.href
}

/** One connection as the server's superuser. It may still be closing when the server ends, which is no error here. */
export function openAdmin(url: string): Pool {
  return new Pool({ connectionString: url, max: 1 }).on('error', () => {})
}

export async function createDatabase(t: Test, options: { empty?: boolean } = {}): Promise<TestDatabase> {
  const server = process.env['TEST_SERVER_URL']
  const template = process.env['TEST_TEMPLATE']
  if (!server || !template) throw new Error('run the tests with npm test, which starts a PostgreSQL for them')
  const name = `mecha_keys_${randomBytes(6).toString('hex')}`
  const admin = openAdmin(server)
  await admin.query(`CREATE DATABASE ${name} TEMPLATE ${options.empty ? 'template1' : template}`)
  const owner = urlFor(server, name)
  const db = openDatabase({ url: owner, size: 5, timeoutMs: 30_000, name: 'test owner' })
  t.teardown(async () => {
    await db.destroy()
    await admin.query(`DROP DATABASE ${name} WITH (FORCE)`)
    await admin.end()
  })
  return { owner, control: urlFor(server, name, LOGINS.control), runtime: urlFor(server, name, LOGINS.runtime), db }
}
