/** Migrations: numbered SQL files, forward only, each in the order of its name. */

import { readdir, readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { Migrator, sql, type Kysely, type Migration, type MigrationProvider } from 'kysely'
import { PACKAGE_ROOT } from '../package-root.js'
import { isConflict, lockTimedOut } from './outage.js'

const FOLDER = join(PACKAGE_ROOT, 'migrations')

/**
 * Longest that a migration waits for a lock: for so long others wait behind it. Less than the second after which PostgreSQL
 * looks for deadlocks, so that with a transaction of the service that wants the same tables in another order it is the migration that
 * gives way.
 */
const LOCK_TIMEOUT = '500ms'
/** Between two attempts, so that the service has the tables most of the time: this, and as much again at random. */
const PAUSE_MS = 750
/** How long attempts go on. */
const PATIENCE_MS = 60_000

/**
 * Applies what is missing, each migration in a transaction of its own, so that none waits with the locks of those before it. Concurrent
 * callers wait for one another. Returns the names applied, in order.
 *
 * @throws what PostgreSQL says of a lock that was not to be had, when `patienceMs` is over; what was applied by then stays so
 */
export async function migrate(db: Kysely<any>, { patienceMs = PATIENCE_MS } = {}): Promise<string[]> {
  const migrator = new Migrator({ db, provider: sqlFiles })
  const applied: string[] = []
  const giveUpAt = performance.now() + patienceMs
  for (;;) {
    const { error, results = [] } = await migrator.migrateUp()
    if (error === undefined) {
      if (results.length === 0) return applied
      applied.push(...results.map((result) => result.migrationName))
    } else {
      const isInTheWay = lockTimedOut(error) || isConflict(error)
      if (!isInTheWay || performance.now() > giveUpAt) throw error as Error
      await sleep(PAUSE_MS * (1 + Math.random()))
    }
  }
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
          await sql`SET LOCAL lock_timeout = ${sql.lit(LOCK_TIMEOUT)}`.execute(db)
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
