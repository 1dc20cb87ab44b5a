/** Three replicas behind no balancer, one PostgreSQL that keeps what it is told to keep, and a wire in between. */

import { spawn, type ChildProcess } from 'node:child_process'
import { generateKeyPairSync, randomBytes } from 'node:crypto'
import { once } from 'node:events'
import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { Client } from 'pg'
import { signOperatorToken } from '../../src/auth/operators.js'
import { SCOPES } from '../../src/auth/scopes.js'
import { loadConfig } from '../../src/config.js'
import { startEmbedded, type EmbeddedDatabase } from '../../src/db/embedded.js'
import { freePort } from '../../src/db/free-port.js'
import { ensureLogin } from '../../src/db/logins.js'
import { migrate } from '../../src/db/migrate.js'
import { openDatabase } from '../../src/db/pool.js'
import { PACKAGE_ROOT } from '../../src/package-root.js'
import { layWire } from '../helpers/wire.js'

export const REPLICAS = 3
/** `REVOCATION_MAX_STALENESS` of the replicas. */
export const BOUND_MS = 3000
export const ORGANIZATION = 'soak'
/** Longest wait for something to come back: a bound, and no expectation. */
const PATIENCE_MS = 60_000

export type Cluster = Awaited<ReturnType<typeof startCluster>>

export async function startCluster() {
  const dataDir = mkdtempSync(join(tmpdir(), 'mecha-keys-soak-'))
  let postgres: EmbeddedDatabase | undefined = await startEmbedded({ dataDir })
  const urls = postgres.urls
  await prepare(urls.owner, urls.control, urls.runtime)
  const endWire: (() => unknown)[] = []
  const wire = await layWire({ teardown: (end: () => unknown) => endWire.push(end) }, urls.owner)
  const environment = {
    DATABASE_URL: wire.through(urls.control), RUNTIME_DATABASE_URL: wire.through(urls.runtime), DATABASE_TIMEOUT: '5s',
    REVOCATION_MAX_STALENESS: `${BOUND_MS / 1000}s`, MAX_ACTIVE_KEYS_PER_MECHA: '1000', LOG_LEVEL: 'silent', BUILTIN_ISSUER: 'on',
    ROOT_SECRETS: randomBytes(32).toString('base64url'),
    BUILTIN_ISSUER_KEY: generateKeyPairSync('ed25519').privateKey.export({ type: 'pkcs8', format: 'pem' }).toString(),
  }
  const ports: number[] = []
  while (ports.length < REPLICAS) ports.push(await freePort())
  const replicas = ports.map((port) => startReplica(environment, port))
  const addresses = ports.map((port) => `http://127.0.0.1:${port}`)

  const cluster = {
    urls: addresses,
    operator: await signOperatorToken(loadConfig(environment), { org: ORGANIZATION, scopes: SCOPES, subject: 'soak', ttlSeconds: 86_400 }),

    /** Resolves when a replica, or every one, is ready and its feed vouches for what it holds. */
    async recovered(which = addresses): Promise<void> {
      const end = performance.now() + PATIENCE_MS
      while (!(await Promise.all(which.map(isWell))).every(Boolean)) {
        if (performance.now() > end) throw new Error('the replicas do not recover')
        await sleep(20)
      }
    },

    /** Ends the database, in order or by SIGKILL, and starts it again on what it had written. */
    async restartDatabase(how: 'in order' | 'SIGKILL'): Promise<void> {
      if (how === 'SIGKILL') {
        const [pid] = readFileSync(join(dataDir, 'postgres', 'data', 'postmaster.pid'), 'utf8').split('\n')
        process.kill(Number(pid), 'SIGKILL')
      }
      await postgres?.stop()
      postgres = undefined
      for (const end = performance.now() + PATIENCE_MS; !postgres; ) {
        // Backends of a postmaster that was killed hold its memory until they have noticed.
        postgres = await startEmbedded({ dataDir }).catch((error: unknown) => {
          if (performance.now() > end) throw error
          return undefined
        })
      }
      wire.leadTo(postgres.urls.owner)
    },

    /** Ends all connections to the database, for good until the wire is restored, or for this moment. */
    cutConnections(): void {
      wire.cut()
    },
    restoreConnections(): void {
      wire.restore()
    },

    async killReplica(i: number): Promise<void> {
      replicas[i]!.kill('SIGKILL')
      await once(replicas[i]!, 'exit')
    },
    startReplica(i: number): void {
      replicas[i] = startReplica(environment, ports[i]!)
    },
    stopReplica: (i: number) => void replicas[i]!.kill('SIGSTOP'),
    continueReplica: (i: number) => void replicas[i]!.kill('SIGCONT'),

    /** Asks the database itself. */
    async query(statement: string): Promise<Record<string, unknown>[]> {
      const client = new Client({ connectionString: postgres!.urls.owner })
      await client.connect()
      const { rows } = await client.query<Record<string, unknown>>(statement)
      await client.end()
      return rows
    },

    async end(): Promise<void> {
      for (const replica of replicas) {
        if (replica.exitCode !== null || replica.signalCode !== null) continue
        const exited = once(replica, 'exit')
        replica.kill('SIGKILL')
        await exited
      }
      for (const end of endWire) end()
      await postgres?.stop()
      rmSync(dataDir, { recursive: true, force: true })
    },
  }
  await cluster.recovered()
  return cluster
}

async function prepare(owner: string, control: string, runtime: string): Promise<void> {
  const db = openDatabase({ url: owner, size: 1, timeoutMs: 60_000, name: 'soak' })
  await migrate(db)
  await ensureLogin(db, 'control', control, 5000)
  await ensureLogin(db, 'runtime', runtime, 5000)
  await db.destroy()
}

function startReplica(environment: Record<string, string>, port: number): ChildProcess {
  return spawn(process.execPath, [join(PACKAGE_ROOT, 'dist', 'src', 'main.js'), 'serve'], {
    env: { PATH: process.env['PATH'], NODE_ENV: 'production', ...environment, PORT: String(port) },
    stdio: ['ignore', 'ignore', 'inherit'],
  })
}

async function isWell(url: string): Promise<boolean> {
  try {
    const [ready, metrics] = await Promise.all(['/readyz', '/metrics'].map((path) => fetch(url + path, { signal: AbortSignal.timeout(2000) })))
    return ready!.ok && (await metrics!.text()).includes('\nmecha_keys_feed_fresh 1\n')
  } catch {
    return false
  }
}
