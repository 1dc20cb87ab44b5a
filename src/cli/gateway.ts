/** Commands that work straight in the database: `migrate`, `gateway`, `root-secrets`, `signing-keys`. */

import { InvalidArgumentError } from 'commander'
import type { Kysely } from 'kysely'
import { databaseSetting, loadConfig, processEnvironment, requireDatabase, requireRoots, type Settings } from '../config.js'
import { createGateway } from '../control/gateways/create.js'
import type { ControlDeps, GatewayCaller } from '../control/deps.js'
import { revoke } from '../control/keys/revoke.js'
import { rootSecretsStatus } from '../control/keys/root-secrets.js'
import { describeSigningKeys, rotateSigningKeys, type Rotation, type SigningKeyView } from '../control/signing-keys/signing-keys.js'
import { listKeys, type Cursor } from '../control/keys/list-store.js'
import { hashVersion } from '../db/hash-version.js'
import { ensureLogin } from '../db/logins.js'
import { migrate } from '../db/migrate.js'
import { openDatabase } from '../db/pool.js'
import type { Database } from '../db/tables.js'
import { unsupportedVersion } from '../db/version.js'
import { ConfigError } from '../errors.js'
import { createHasher } from '../credentials/hash-queue.js'
import { newId, parsePublicId, publicId } from '../credentials/id.js'
import { statusAt } from '../credentials/status.js'
import { isLocal, startLocal } from './local.js'
import { EXIT, print, userName } from './shared.js'

export async function runMigrate(options: { withLogins?: true }): Promise<void> {
  await withDatabaseSettings(async (config) => {
    const applied = await migrateDatabase(config, options.withLogins ?? false)
    process.stdout.write(applied.length > 0 ? `applied ${applied.join(', ')}\n` : 'nothing to apply\n')
  })
}

/** Gateways that are read at once. */
const PAGE = 1000

interface OfWhom {
  org?: string
  allOrganizations?: true
}

export async function runGatewayCreate(options: OfWhom & { name: string; json?: true }): Promise<void> {
  const caller = commandLine(orgOf(options))
  await withDatabaseSettings((config) =>
    withControlDeps(config, async (parts) => {
      const { key, plaintext } = await createGateway(parts, caller, options.name)
      const id = publicId('gateway', key.id)
      print(options.json, { id, name: options.name, org_id: key.org_id, plaintext_key: plaintext }, () => [plaintext])
    }),
  )
}

export async function runGatewayList(options: OfWhom & { json?: true }): Promise<void> {
  const { orgId } = commandLine(orgOf(options))
  await withDatabaseSettings((config) =>
    withControlDeps(config, async ({ db }) => {
      const gateways: { id: string; name: string | null; org_id: string | null; status: string }[] = []
      for (let after: Cursor | undefined, isMore = true; isMore; ) {
        const { keys, now } = await listKeys(db, { orgId, crews: undefined }, { kind: 'gateway', limit: PAGE, after })
        gateways.push(...keys.map((key) => ({ id: publicId('gateway', key.id), name: key.name, org_id: key.org_id, status: statusAt(key, now) })))
        const last = keys.at(-1)
        after = last && { by: 'created_at', at: last.created_at, id: last.id }
        isMore = keys.length === PAGE
      }
      print(options.json, { gateways }, () => gateways.map(({ id, status, name }) => `${id}  ${status}  ${name}`))
    }),
  )
}

export async function runGatewayRevoke(id: string, options: OfWhom & { reason?: string }): Promise<void> {
  const uuid = parsePublicId('gateway', id)
  if (!uuid) throw new InvalidArgumentError('<id> must be a gateway id: gw_…')
  const caller = commandLine(orgOf(options))
  await withDatabaseSettings((config) =>
    withControlDeps(config, async (parts) => {
      await revoke(parts, caller, 'gateway', uuid, options.reason)
      process.stdout.write(`revoked ${id}\n`)
    }),
  )
}

export async function runRootSecretsStatus({ json }: { json?: true }): Promise<void> {
  await withDatabaseSettings((config) =>
    withControlDeps(config, async ({ db, roots }) => {
      const status = await rootSecretsStatus(db, roots)
      print(json, { root_secrets: status }, () =>
        status.map((root) => {
          const next = { newest: 'makes keys', older: root.droppable ? 'may be dropped' : 'still needed', missing: 'NEEDED AND NOT CONFIGURED' }
          return `${root.id}  ${root.role}  tags ${root.tagged} living keys, peppers ${root.peppered}, seals ${root.sealed} signing keys  ${next[root.role]}`
        }),
      )
      if (status.some(({ role }) => role === 'missing')) process.exitCode = EXIT.no
    }),
  )
}

export async function runSigningKeysList({ json }: { json?: true }): Promise<void> {
  await withDatabaseSettings((config) =>
    withControlDeps(config, async ({ db }) => printSigningKeys(json, await describeSigningKeys(db))),
  )
}

export async function runSigningKeysRotate({ json, ...rotation }: Rotation & { json?: true }): Promise<void> {
  await withDatabaseSettings((config) =>
    withControlDeps(config, async (parts) => printSigningKeys(json, await rotateSigningKeys(parts, commandLine(null), rotation))),
  )
}

function printSigningKeys(json: true | undefined, keys: SigningKeyView[]): void {
  const about = { next: 'published, signs from', signing: 'signs since', past: 'verifies only, signed from' }
  print(json, { signing_keys: keys }, () =>
    keys.map(({ kid, alg, role, signs_from }) => `${kid}  ${alg}  ${role.padEnd(7)}  ${about[role]} ${signs_from.toISOString()}`),
  )
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

function orgOf({ org, allOrganizations }: OfWhom): string | null {
  if (org !== undefined && org !== '') return org
  if (allOrganizations) return null
  throw new InvalidArgumentError('say --org <org>, or --all-organizations')
}
