/** A database as a release before left it. */

import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { Migrator, sql, type Kysely } from 'kysely'
import { PACKAGE_ROOT } from '../../src/package-root.js'

/** Applies the migrations before the one of that number. */
export async function migrateBefore(db: Kysely<any>, number: string): Promise<void> {
  const folder = join(PACKAGE_ROOT, 'migrations')
  const names = readdirSync(folder).filter((name) => name < number).sort()
  const migrations = Object.fromEntries(names.map((name) => [name.replace(/\.sql$/, ''), { up: async (trx: Kysely<any>) => void (await sql.raw(readFileSync(join(folder, name), 'utf8')).execute(trx)) }]))
  const { error } = await new Migrator({ db, provider: { getMigrations: async () => migrations } }).migrateToLatest()
  if (error) throw error as Error
}
