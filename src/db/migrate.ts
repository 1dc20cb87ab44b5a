/** Migrations: numbered SQL files, forward only, each in the order of its name. */

import { readdir, readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { Migrator, sql, type Kysely, type Migration, type MigrationProvider } from 'kysely'
import { PACKAGE_ROOT } from '../package-root.js'
import { buildIndexes } from './indexes.js'
import { givingWay, limitLockWaits, LOCK_PATIENCE_MS } from './transaction.js'

const FOLDER = join(PACKAGE_ROOT, 'migrations')

/** The session that has this advisory lock is the one that migrates. */
const MIGRATING = 20829
/** How long another one is waited for. */
const TURN_PATIENCE_MS = 600_000

/**
 * Applies what is missing, each migration in a transaction of its own, so that none waits with the locks of those before it, and then
 * builds the indexes that are missing, while others write. Concurrent callers wait for one another. Returns the names of what was applied and built, in order.
 *
 * @throws what PostgreSQL says of a lock that was not to be had, when `patienceMs` is over; what was applied by then stays so
 */
export async function migrate(db: Kysely<any>, { patienceMs = LOCK_PATIENCE_MS } = {}): Promise<string[]> {
  return oneAtATime(db, async (session) => {
    const giveUpAt = performance.now() + patienceMs
    const applied = await applyMissing(session, giveUpAt)
    const built = await buildIndexes(session, () => performance.now() + patienceMs)
    return [...applied, ...built.map((name) => `index ${name}`)]
  })
}

/**
 * Runs in one session, while no other caller does. Whoever has to wait tries again and again: a statement that waits has a snapshot, and
 * an index that is being built waits for everybody who has an older one.
 */
async function oneAtATime<T>(db: Kysely<any>, work: (session: Kysely<any>) => Promise<T>): Promise<T> {
  return db.connection().execute(async (session) => {
    await givingWay(performance.now() + TURN_PATIENCE_MS, () => sql`
      WITH soon AS MATERIALIZED (SELECT set_config('lock_timeout', '1ms', true)) SELECT pg_advisory_lock(${sql.lit(MIGRATING)}) FROM soon`.execute(session))
    try {
      return await work(session)
    } finally {
      // A session that is gone has no lock.
      await sql`SELECT pg_advisory_unlock(${sql.lit(MIGRATING)})`.execute(session).catch(() => {})
    }
  })
}

async function applyMissing(db: Kysely<any>, giveUpAt: number): Promise<string[]> {
  const migrator = new Migrator({ db, provider: sqlFiles })
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
