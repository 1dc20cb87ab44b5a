/** What commands run with that work straight in the database: settings, logins, and whom the audit trail names. */

import type { Kysely } from 'kysely'
import { loadConfig, processEnvironment, requireDatabase, requireRoots, type Settings } from '../config.js'
import type { ControlDeps, GatewayCaller } from '../control/deps.js'
import { createHasher } from '../credentials/hash-queue.js'
import { newId } from '../credentials/id.js'
import { hashVersion } from '../db/hash-version.js'
import { openDatabase } from '../db/pool.js'
import type { Database } from '../db/tables.js'
import { isLocal, startLocal } from './local.js'
import { userName } from './shared.js'

/** Runs with the settings of a database: the deployment's, or the embedded one, which is started if it is not up. */
export async function withDatabaseSettings(run: (config: Settings) => Promise<void>): Promise<void> {
  const environment = processEnvironment()
  if (!isLocal(environment)) return run(loadConfig(environment))
  const local = await startLocal(environment, { share: true })
  try {
    await run(loadConfig(local.environment))
  } finally {
    await local.database.stop()
  }
}

export async function withControlDeps<T>(config: Settings, run: (deps: ControlDeps) => Promise<T>): Promise<T> {
  const roots = requireRoots(config)
  const db = openDatabase({ url: requireDatabase(config, 'DATABASE_URL'), size: 1, timeoutMs: config.DATABASE_TIMEOUT * 1000, name: 'mecha-keys command line' })
  try {
    return await run({ db, config, roots, hasher: createHasher({ profile: config.HASH_PROFILE, version: hashVersion(db), queueSize: 1, onDone: () => {} }) })
  } finally {
    await db.destroy()
  }
}

/** Runs with the owner's login. */
export async function asOwner(run: (db: Kysely<Database>, config: Settings) => Promise<void>, timeoutMs?: number): Promise<void> {
  await withDatabaseSettings(async (config) => {
    const url = requireDatabase(config, 'MIGRATE_DATABASE_URL', 'DATABASE_URL')
    const db = openDatabase({ url, size: 1, timeoutMs: timeoutMs ?? config.DATABASE_TIMEOUT * 1000, name: 'mecha-keys command line' })
    try {
      await run(db, config)
    } finally {
      await db.destroy()
    }
  })
}

/** Whoever runs the command line, for the audit trail. */
export function commandLine(orgId: string | null): GatewayCaller {
  return { actor: `cli:${userName()}`, requestId: newId(), address: 'local', orgId, crews: undefined }
}
