/** Migrations: numbered SQL files, forward only, each in the order of its name. */

import { readdir, readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { Migrator, sql, type Kysely, type Migration, type MigrationProvider } from 'kysely'
import { PACKAGE_ROOT } from '../package-root.js'
import { givingWay, limitLockWaits, LOCK_PATIENCE_MS } from './transaction.js'

const FOLDER = join(PACKAGE_ROOT, 'migrations')

/**
 * Applies what is missing, each migration in a transaction of its own, so that none waits with the locks of those before it. Concurrent
 * callers wait for one another. Returns the names applied, in order.
 *
 * @throws what PostgreSQL says of a lock that was not to be had, when `patienceMs` is over; what was applied by then stays so
 */
export async function migrate(db: Kysely<any>, { patienceMs = LOCK_PATIENCE_MS } = {}): Promise<string[]> {
  const migrator = new Migrator({ db, provider: sqlFiles })
  const giveUpAt = performance.now() + patienceMs
  for (const applied: string[] = []; ; ) {
    const next = await givingWay(giveUpAt, () => applyNext(migrator))
    if (next.length === 0) return applied
    applied.push(...next)
  }
}

/** Returns its name; none where nothing is missing. */
async function applyNext(migrator: Migrator): Promise<string[]> {
  const { error, results = [] } = await migrator.migrateUp()
  if (error !== undefined) throw error as Error
  return results.map((result) => result.migrationName)
}

/** Names of the migrations that this program knows and the database has not applied. */
export async function pendingMigrations(db: Kysely<any>): Promise<string[]> {
  const known = await migrationNames()
  const { rows } = await sql<{ name: string }>`SELECT name FROM kysely_migration`.execute(db)
  const applied = new Set(rows.map((row) => row.name))
  return known.filter((name) => !applied.has(name))
}

const sqlFiles: MigrationProvider = {
  async getMigrations() {
    const migrations: Record<string, Migration> = {}
    for (const name of await migrationNames()) {
      const text = await readFile(join(FOLDER, `${name}.sql`), 'utf8')
      migrations[name] = {
        async up(db) {
          await limitLockWaits(db)
          await sql.raw(text).execute(db)
        },
      }
    }
    return migrations
  },
}

async function migrationNames(): Promise<string[]> {
  const files = await readdir(FOLDER)
  return files.filter((file) => file.endsWith('.sql')).sort().map((file) => file.slice(0, -'.sql'.length))
}
