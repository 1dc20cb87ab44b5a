/** `migrate`: brings the tables up to date as their owner. `serve` does so itself in the embedded default. */

import { databaseSetting, requireDatabase, type Settings } from '../config.js'
import { ensureLogin } from '../db/logins.js'
import { migrate } from '../db/migrate.js'
import { openDatabase } from '../db/pool.js'
import { unsupportedVersion } from '../db/version.js'
import { ConfigError } from '../errors.js'
import { withDatabaseSettings } from './with-database.js'

export async function runMigrate(options: { withLogins?: true }): Promise<void> {
  await withDatabaseSettings(async (config) => {
    const applied = await migrateDatabase(config, options.withLogins ?? false)
    process.stdout.write(applied.length > 0 ? `applied ${applied.join(', ')}\n` : 'nothing to apply\n')
  })
}

export async function migrateDatabase(config: Settings, withLogins: boolean): Promise<string[]> {
  const url = requireDatabase(config, 'MIGRATE_DATABASE_URL', 'DATABASE_URL')
  // A migration may take its time; waiting for a lock that the service holds may not.
  const db = openDatabase({ url, size: 1, timeoutMs: 600_000, name: 'mecha-keys migrate' })
  try {
    const unsupported = await unsupportedVersion(db, databaseSetting(config, 'MIGRATE_DATABASE_URL', 'DATABASE_URL'))
    if (unsupported) throw new ConfigError(unsupported)
    const applied = await migrate(db)
    if (withLogins) {
      const timeoutMs = config.DATABASE_TIMEOUT * 1000
      await ensureLogin(db, 'control', requireDatabase(config, 'DATABASE_URL'), timeoutMs)
      if (config.RUNTIME_DATABASE_URL) await ensureLogin(db, 'runtime', config.RUNTIME_DATABASE_URL, timeoutMs)
    }
    return applied
  } finally {
    await db.destroy()
  }
}
