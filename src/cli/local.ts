/** The embedded default: with no database named, what a deployment would be given is generated under the data folder. */

import { generateKeyPairSync, randomBytes } from 'node:crypto'
import { existsSync, mkdirSync, readFileSync, statSync, writeFileSync } from 'node:fs'
import { dirname, join, resolve } from 'node:path'
import type { Environment } from '../config.js'
import { requireEmbedded, startEmbedded, type EmbeddedDatabase } from '../db/embedded/embedded.js'
import { ConfigError } from '../errors.js'

/** Whether no database is named at all: one that is named is never passed over for the embedded one. */
export function isLocal(environment: Environment): boolean {
  return ['DATABASE_URL', 'RUNTIME_DATABASE_URL', 'MIGRATE_DATABASE_URL']
    .flatMap((name) => [name, `${name}_FILE`])
    .every((name) => environment[name] === undefined)
}

/** Starts the embedded database, or shares a running one, and returns the environment with the gaps filled. */
export async function startLocal(
  environment: Environment,
  options: { share?: boolean } = {},
): Promise<{ environment: Environment; database: EmbeddedDatabase }> {
  const filled = withLocalFiles(environment)
  const database = await startEmbedded({ dataDir: dataDirOf(environment), ...options })
  const { owner, control, runtime } = database.urls
  const urls = { DATABASE_URL: control, RUNTIME_DATABASE_URL: runtime, MIGRATE_DATABASE_URL: owner }
  return { environment: { ...filled, ...urls }, database }
}

/** Generates the root secret and the built-in issuer's key where there are none yet, and names their files. */
export function withLocalFiles(environment: Environment): Environment {
  requireEmbedded()
  const files = localFiles(environment)
  return {
    BUILTIN_ISSUER: 'on',
    ...(environment['ROOT_SECRETS'] === undefined && { ROOT_SECRETS_FILE: files.rootSecrets }),
    ...(environment['BUILTIN_ISSUER_KEY'] === undefined && { BUILTIN_ISSUER_KEY_FILE: files.issuerKey }),
    ...environment,
  }
}

function localFiles(environment: Environment) {
  const dir = dataDirOf(environment)
  try {
    // Root runs PostgreSQL as another user, which has to pass through this folder but not to see what is in it.
    makeFolder(dir, process.getuid?.() === 0 ? 0o711 : 0o700)
    return {
      rootSecrets: generated(join(dir, 'root-secrets'), () => randomBytes(32).toString('base64url')),
      issuerKey: generated(join(dir, 'builtin-issuer.pem'), () =>
        generateKeyPairSync('ed25519').privateKey.export({ type: 'pkcs8', format: 'pem' }).toString(),
      ),
    }
  } catch (error) {
    throw new ConfigError(`DATA_DIR cannot be made or written to (${(error as NodeJS.ErrnoException).code}); it is for the embedded PostgreSQL, which runs because no DATABASE_URL is set`)
  }
}

/** One folder after another: below /proc, Node.js tries for ever to make what is missing in one go. */
function makeFolder(dir: string, mode: number): void {
  if (statSync(dir, { throwIfNoEntry: false })) return
  makeFolder(dirname(dir), mode)
  try {
    mkdirSync(dir, { mode })
  } catch (error) {
    if (!existsSync(dir)) throw error
  }
}

/**
 * A secret that the embedded default keeps for the person at this laptop, readable by its owner alone: made once, and
 * again when it is no longer good.
 */
export async function keptSecret(
  environment: Environment,
  name: string,
  secret: { isGood: (kept: string) => Promise<boolean>; make: () => Promise<string> },
): Promise<string> {
  const file = join(dataDirOf(environment), name)
  const kept = existsSync(file) ? readFileSync(file, 'utf8') : undefined
  if (kept !== undefined && (await secret.isGood(kept))) return kept
  writeFileSync(file, await secret.make(), { mode: 0o600 })
  return readFileSync(file, 'utf8')
}

function dataDirOf(environment: Environment): string {
  return resolve(environment['DATA_DIR'] ?? '.data')
}

function generated(file: string, make: () => string): string {
  if (!existsSync(file)) writeFileSync(file, make(), { mode: 0o600 })
  return file
}
