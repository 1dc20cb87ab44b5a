/** What the figures are taken of: one PostgreSQL that keeps what it is told to keep, databases in it, and services. */

import { generateKeyPairSync, randomBytes } from 'node:crypto'
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { sql, type Kysely } from 'kysely'
import { signOperatorToken } from '../src/control/operators/builtin-issuer.js'
import { SCOPES } from '../src/control/operators/scopes.js'
import { loadConfig } from '../src/config.js'
import { startEmbedded, type DatabaseUrls } from '../src/db/embedded/embedded.js'
import { freePort } from '../src/db/embedded/free-port.js'
import { ensureLogin } from '../src/db/logins.js'
import { migrate } from '../src/db/migrate.js'
import { openDatabase } from '../src/db/pool.js'
import type { Database } from '../src/db/tables.js'
import { rootsOf } from '../src/credentials/roots.js'
import { start, stop, stopAll } from './processes.js'

export const ORGANIZATION = 'bench'

export interface BenchDatabase {
  readonly urls: DatabaseUrls
  /** As the owner. */
  readonly db: Kysely<Database>
}

export interface Service {
  readonly url: string
  readonly pid: number
  /** Headers of an operator with all scopes, and of a gateway. */
  readonly operator: Record<string, string>
  readonly gateway: Record<string, string>
  /** Headers of an operator who is narrowed to some crews. */
  operatorOf(...crews: string[]): Promise<Record<string, string>>
  /** The `Authorization` of an operator of each of so many organizations. */
  operatorsOf(organizations: number): Promise<string[]>
  /** A call that has to be answered with 2xx. */
  call(method: 'GET' | 'POST', path: string, body?: object, headers?: Record<string, string>): Promise<any>
  verify(key: string): Promise<{ valid: boolean; code?: string }>
  /** The sum of a metric over its labels. */
  metric(name: string): Promise<number>
  stop(): Promise<void>
}

export type World = Awaited<ReturnType<typeof createWorld>>

export interface WorldOptions {
  /** A folder to keep everything in, and to go on with; one that is deleted in the end otherwise. */
  readonly folder?: string
  /** Settings of PostgreSQL, as `name=value`. */
  readonly flags?: readonly string[]
}

export async function createWorld({ folder, flags = [] }: WorldOptions = {}) {
  const dataDir = folder ?? mkdtempSync(join(tmpdir(), 'mecha-keys-bench-'))
  const postgres = await startEmbedded({ dataDir, flags: ['max_connections=300', ...flags] })
  const secrets = secretsOf(dataDir)
  const databases = new Map<string, Promise<BenchDatabase>>()

  async function createDatabase(name: string): Promise<BenchDatabase> {
    const admin = openDatabase({ url: postgres.urls.owner, size: 1, timeoutMs: 60_000, name: 'bench' })
    const { rows } = await sql`SELECT FROM pg_database WHERE datname = ${name}`.execute(admin)
    if (rows.length === 0) await sql`CREATE DATABASE ${sql.id(name)}`.execute(admin)
    await admin.destroy()
    const named = (url: string) => Object.assign(new URL(url), { pathname: `/${name}` }).href
    const urls = { owner: named(postgres.urls.owner), control: named(postgres.urls.control), runtime: named(postgres.urls.runtime) }
    const db = openDatabase({ url: urls.owner, size: 2, timeoutMs: 900_000, name: 'bench' })
    await migrate(db)
    for (const plane of ['control', 'runtime'] as const) await ensureLogin(db, plane, urls[plane], 5000)
    return { urls, db }
  }

  return {
    root: rootsOf([secrets['ROOT_SECRETS']!])[0],

    /** A migrated database with nothing in it, or what earlier figures put there. */
    database(name: string): Promise<BenchDatabase> {
      const database = databases.get(name) ?? createDatabase(name)
      databases.set(name, database)
      return database
    },

    /** A service as it is deployed, on one of the databases. */
    async service({ urls }: BenchDatabase, settings: Record<string, string> = {}): Promise<Service> {
      const port = await freePort()
      const environment = {
        LOG_LEVEL: 'warn', MAX_ACTIVE_KEYS_PER_MECHA: '100', DATABASE_URL: urls.control, RUNTIME_DATABASE_URL: urls.runtime,
        HOST: '127.0.0.1', PORT: String(port), ...secrets, ...settings,
      }
      const child = start('dist/src/main.js', ['serve'], environment)
      // What it warns of is seen; a pipe that nobody reads would fill up.
      child.stdout!.pipe(process.stderr, { end: false })
      const url = `http://127.0.0.1:${port}`
      await ready(url)
      const sign = (org: string, crews?: readonly string[]) => signOperatorToken(loadConfig(environment), { org, scopes: SCOPES, subject: 'bench', ttlSeconds: 86_400, ...(crews && { crews }) })
      const operator = headersFor(await sign(ORGANIZATION))
      const call: Service['call'] = (method, path, body, headers) => request(method, url + path, { ...operator, ...headers }, body)
      const { plaintext_key } = await call('POST', '/v1/gateways', { name: 'bench' })
      const gateway = headersFor(plaintext_key as string)
      return {
        url, pid: child.pid!, operator, gateway, call,
        operatorOf: async (...crews) => headersFor(await sign(ORGANIZATION, crews)),
        operatorsOf: (organizations) => Promise.all(Array.from({ length: organizations }, async (_, i) => `Bearer ${await sign(`${ORGANIZATION}${i}`)}`)),
        verify: (key) => request('POST', `${url}/v1/verify`, gateway, { key }) as Promise<{ valid: boolean }>,
        metric: async (name) => sumOf(await (await fetch(`${url}/metrics`)).text(), name),
        stop: () => stop(child),
      }
    },

    async end(): Promise<void> {
      await stopAll()
      for (const database of databases.values()) await (await database).db.destroy()
      await postgres.stop()
      if (!folder) rmSync(dataDir, { recursive: true, force: true })
    },
  }
}

/** What the services are given, the same for as long as the folder is there. */
function secretsOf(folder: string): Record<string, string> {
  const file = join(folder, 'bench-secrets.json')
  if (!existsSync(file)) {
    const made = {
      ROOT_SECRETS: randomBytes(32).toString('base64url'),
      BUILTIN_ISSUER: 'on',
      BUILTIN_ISSUER_KEY: generateKeyPairSync('ed25519').privateKey.export({ type: 'pkcs8', format: 'pem' }).toString(),
    }
    writeFileSync(file, JSON.stringify(made), { mode: 0o600 })
  }
  return JSON.parse(readFileSync(file, 'utf8')) as Record<string, string>
}

async function request(method: string, url: string, headers: Record<string, string>, body?: object): Promise<unknown> {
  const response = await fetch(url, { method, headers, ...(body && { body: JSON.stringify(body) }), signal: AbortSignal.timeout(60_000) })
  if (!response.ok) throw new Error(`${method} ${url} answered ${response.status}: ${await response.text()}`)
  return response.json()
}

function headersFor(credential: string): Record<string, string> {
  return { authorization: `Bearer ${credential}`, 'content-type': 'application/json' }
}

function sumOf(metrics: string, name: string): number {
  const lines = metrics.split('\n').filter((line) => line.startsWith(`${name} `) || line.startsWith(`${name}{`))
  if (lines.length === 0) throw new Error(`there is no metric ${name}`)
  return lines.reduce((sum, line) => sum + Number(line.split(' ').at(-1)), 0)
}

async function ready(url: string): Promise<void> {
  const end = performance.now() + 30_000
  const isReady = () => fetch(`${url}/readyz`).then(({ ok }) => ok, () => false)
  while (!(await isReady())) {
    if (performance.now() > end) throw new Error('the service does not get ready')
    await sleep(20)
  }
}
