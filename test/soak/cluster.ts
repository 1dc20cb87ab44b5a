/**
 * Three replicas and two gateways with the SDK, as processes of their own, one PostgreSQL that keeps what it is told to
 * keep, and wires in between: each replica has one for its control plane's pool, its runtime plane's pool and its feed.
 */

import { spawn, type ChildProcess } from 'node:child_process'
import { generateKeyPairSync, randomBytes } from 'node:crypto'
import { once } from 'node:events'
import { existsSync, mkdtempSync, openSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { connect, createServer, type AddressInfo, type Socket } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { setTimeout as sleep } from 'node:timers/promises'
import { signOperatorToken } from '../../src/control/operators/builtin-issuer.js'
import { SCOPES } from '../../src/control/operators/scopes.js'
import { loadConfig } from '../../src/config.js'
import { freePort } from '../../src/db/embedded/free-port.js'
import { ensureLogin } from '../../src/db/logins.js'
import { migrate } from '../../src/db/migrate.js'
import { openDatabase } from '../../src/db/pool.js'
import { PACKAGE_ROOT } from '../../src/package-root.js'
import { wallClock, type WallClock } from '../helpers/wall-clock.js'
import { layWire, type Wire } from '../helpers/wire.js'
import { BOUND_MS } from './checker.js'
import { suspendable } from './clocks.js'
import { SoakDatabase } from './database.js'

export const REPLICAS = 3
/** The first asks whichever replica a balancer gives it, the other one replica. */
export const GATEWAYS = 2
export const ORGANIZATION = 'soak'
/** Longest wait for something to come back: a bound, and no expectation. */
const PATIENCE_MS = 60_000
const GATEWAY_PROCESS = join(PACKAGE_ROOT, 'dist', 'test', 'soak', 'gateway-process.js')

export const LINKS = ['control', 'runtime', 'feed'] as const
export type Link = (typeof LINKS)[number]

/** What can be stopped, and come back as if its machine had been suspended. */
export interface Suspendable {
  /** SIGSTOP. */
  stop(): void
  /** SIGCONT. Where the machine was suspended, the process's monotonic clock has stood still meanwhile. */
  continue(as: 'stopped' | 'suspended'): void
}

export interface Replica extends Suspendable {
  readonly url: string
  readonly authzUrl: string
  readonly clock: WallClock
  readonly wires: Readonly<Record<Link, Wire>>
  /** Whether it is known to be out of order: changes are asked of others, as a balancer would have it. */
  isOut: boolean
  /** Resolves when it listens. */
  start(): Promise<void>
  kill(): Promise<void>
}

export interface Gateway extends Suspendable {
  /** What `verify` comes to: `valid`, a refusal's code, or why nobody knows. */
  ask(key: string): Promise<string>
  /** Its connections go dead; new ones pass. */
  strand: () => void
}

export type Cluster = Awaited<ReturnType<typeof startCluster>>

export async function startCluster() {
  const folder = mkdtempSync(join(tmpdir(), 'mecha-keys-soak-'))
  const endings: (() => unknown)[] = []
  const t = { teardown: (end: () => unknown) => void endings.push(end) }
  const databaseClock = wallClock(join(folder, 'database-clock'), 1)
  const first = await SoakDatabase.start(databaseClock.environment)
  // The wires know where the database is by now; these say who asks.
  const { urls } = first
  await prepare(urls)
  const environment = {
    DATABASE_TIMEOUT: '5s', REVOCATION_MAX_STALENESS: `${BOUND_MS / 1000}s`, MAX_ACTIVE_KEYS_PER_MECHA: '10000', REVOKE_TOKEN_RATE: '1000000',
    AUTHZ_UNAVAILABLE: '503', LOG_LEVEL: 'warn', BUILTIN_ISSUER: 'on', ROOT_SECRETS: randomBytes(32).toString('base64url'),
    BUILTIN_ISSUER_KEY: generateKeyPairSync('ed25519').privateKey.export({ type: 'pkcs8', format: 'pem' }).toString(),
  }
  const config = loadConfig({ ...environment, DATABASE_URL: urls.control })
  const trail = { wire: await layWire(t, urls.owner), count: 0, file: '', child: undefined as ChildProcess | undefined }
  const replicas: Replica[] = []
  const children = new Set<ChildProcess>()
  replicas.push(...(await Promise.all(Array.from({ length: REPLICAS }, (_, i) => layReplica(i)))))
  const gateways: Gateway[] = []

  async function layReplica(i: number): Promise<Replica> {
    const [port, authzPort] = [await freePort(), await freePort()]
    const clock = wallClock(join(folder, `clock-${i}`), 1)
    const suspension = join(folder, `suspended-${i}`)
    const wires = { control: await layWire(t, urls.owner), runtime: await layWire(t, urls.owner), feed: await layWire(t, urls.owner) }
    const log = openSync(join(folder, `replica-${i}.log`), 'a')
    let child: ChildProcess
    const replica = {
      url: `http://127.0.0.1:${port}`, authzUrl: `http://127.0.0.1:${authzPort}`, clock, wires,
      isOut: false,
      async start() {
        writeFileSync(suspension, '0')
        child = spawn(process.execPath, [...suspendable(suspension), join(PACKAGE_ROOT, 'dist', 'src', 'main.js'), 'serve'], {
          env: {
            PATH: process.env['PATH'], NODE_ENV: 'production', ...environment, ...clock.environment, SUSPENDED_MS: suspension, PORT: String(port), AUTHZ_LISTEN: `127.0.0.1:${authzPort}`,
            DATABASE_URL: wires.control.through(urls.control), RUNTIME_DATABASE_URL: wires.runtime.through(urls.runtime), DATABASE_DIRECT_URL: wires.feed.through(urls.runtime),
          },
          stdio: ['ignore', log, log],
        })
        children.add(child)
        await until(() => isOk(`${replica.url}/livez`), folder)
      },
      async kill() {
        child.kill('SIGKILL')
        await once(child, 'exit')
        children.delete(child)
      },
      ...suspensions(() => child, suspension),
    }
    await replica.start()
    return replica
  }

  /** `mecha-keys` with some arguments, in the cluster's environment. */
  function runProgram(args: readonly string[], more: Record<string, string>): ChildProcess {
    const log = openSync(join(folder, `${args[0]}.log`), 'a')
    const child = spawn(process.execPath, [join(PACKAGE_ROOT, 'dist', 'src', 'main.js'), ...args], { env: { PATH: process.env['PATH'], ...environment, ...more }, stdio: ['ignore', log, log] })
    children.add(child)
    return child
  }

  const cluster = {
    folder,
    replicas,
    gateways,
    databaseClock,
    /** The one that writes are acknowledged by. */
    database: first,
    operator: await signOperatorToken(config, { org: ORGANIZATION, scopes: SCOPES, subject: 'soak', ttlSeconds: 86_400 }),
    /** The ways to the database: of one kind or all, of some replicas or all. */
    wires: (link: Link | 'all' = 'all', of: readonly Replica[] = replicas): Wire[] => of.flatMap(({ wires }) => (link === 'all' ? Object.values(wires) : [wires[link]])),

    /** Follows the audit trail to a new file, under the control plane's login. */
    followTrail(): void {
      trail.file = join(folder, `events-${trail.count++}.jsonl`)
      trail.child = runProgram(['events', '--follow', '--output', trail.file], { DATABASE_URL: trail.wire.through(urls.control) })
    },

    /** Ends that, when it has all that the database has; to the file. */
    async endTrail(): Promise<string> {
      const [last] = await cluster.database.query<{ id: string }>('SELECT max(position)::text AS id FROM events')
      await until(async () => lastLineOf(trail.file).includes(`"${last!.id}"`), folder)
      const exited = once(trail.child!, 'exit')
      trail.child!.kill('SIGTERM')
      await exited
      return trail.file
    },

    /** `mecha-keys restore replay`. */
    async replay(file: string): Promise<void> {
      const child = runProgram(['restore', 'replay', file], { MIGRATE_DATABASE_URL: cluster.database.urls.owner })
      const [code] = (await once(child, 'exit')) as [number | null]
      if (code !== 0) throw new Error(`the replay ended with ${code}; the log is in ${folder}`)
    },

    /** Starts the gateways, with their credential. */
    async startGateways(credential: string): Promise<void> {
      const balancer = await layBalancer(t, replicas)
      const direct = await layWire(t, replicas[1]!.url)
      gateways.push(startGateway(balancer.url, balancer, credential), startGateway(direct.through(replicas[1]!.url), { strand: () => direct.failAfter(0, 'silent') }, credential))
    },

    /** Resolves when every replica is ready and its feed vouches for what it has cached; to how long that took, in milliseconds. */
    async recovered(): Promise<number> {
      const start = performance.now()
      await until(async () => (await Promise.all(replicas.map(({ url }) => isWell(url)))).every(Boolean), folder)
      return performance.now() - start
    },

    /** Ends the database, in order or by SIGKILL, and starts it again on what it had written. */
    async restartDatabase(how: 'in order' | 'SIGKILL'): Promise<void> {
      await cluster.database.stop(how)
      await cluster.database.start()
      for (const wire of [...cluster.wires(), trail.wire]) wire.leadTo(cluster.database.urls.owner)
    },

    /** Takes the way that the audit trail is followed on to another database. */
    moveTrail(): void {
      trail.wire.leadTo(cluster.database.urls.owner)
      trail.wire.cut()
      trail.wire.restore()
    },

    /** @param isKept whether the replicas' logs are */
    async end({ isKept }: { isKept: boolean }): Promise<void> {
      for (const child of children) {
        if (child.exitCode !== null || child.signalCode !== null) continue
        const exited = once(child, 'exit')
        child.kill('SIGKILL')
        await exited
      }
      for (const end of endings) end()
      await cluster.database.remove()
      if (!isKept) rmSync(folder, { recursive: true, force: true })
    },
  }

  function startGateway(url: string, { strand }: Pick<Gateway, 'strand'>, credential: string): Gateway {
    const suspension = join(folder, `suspended-gateway-${gateways.length}-${children.size}`)
    const child = spawn(process.execPath, [...suspendable(suspension), GATEWAY_PROCESS, url, credential, String(BOUND_MS)], {
      stdio: ['pipe', 'pipe', 'inherit'], env: { PATH: process.env['PATH'], SUSPENDED_MS: suspension },
    })
    children.add(child)
    const lines = createInterface({ input: child.stdout })[Symbol.asyncIterator]()
    return {
      async ask(key) {
        child.stdin.write(`${key}\n`)
        const { value, done } = await lines.next()
        if (done) throw new Error('a gateway ended')
        return value
      },
      strand: () => strand(),
      ...suspensions(() => child, suspension),
    }
  }

  cluster.followTrail()
  await cluster.recovered()
  return cluster
}

/** What a gateway may be balanced over: each connection goes to the next replica that takes it. */
async function layBalancer(t: { teardown: (end: () => unknown) => void }, replicas: readonly Replica[]) {
  const open = new Set<Socket>()
  let next = 0
  let isStranded = new AbortController()
  const proxy = createServer((near) => {
    near.on('error', () => {})
    const whenOpened = isStranded.signal
    const tryNext = (left: number) => {
      const far = connect(Number(new URL(replicas[next++ % replicas.length]!.url).port), '127.0.0.1')
      far.once('error', () => (left > 1 ? tryNext(left - 1) : near.destroy())).once('connect', () => {
        for (const [from, into] of [[near, far], [far, near]] as const) {
          open.add(from)
          from.on('error', () => {}).on('close', () => (open.delete(from), into.destroy()))
          from.on('data', (bytes) => whenOpened.aborted || into.write(bytes))
        }
      })
    }
    tryNext(replicas.length)
  }).listen(0, '127.0.0.1')
  await once(proxy, 'listening')
  t.teardown(() => (open.forEach((socket) => socket.destroy()), proxy.close()))
  return {
    url: `http://127.0.0.1:${(proxy.address() as AddressInfo).port}`,
    strand: () => (isStranded.abort(), void (isStranded = new AbortController())),
  }
}

function suspensions(process: () => ChildProcess, file: string): Suspendable {
  let stoppedAt = 0
  return {
    stop() {
      process().kill('SIGSTOP')
      stoppedAt = performance.now()
    },
    continue(as) {
      if (as === 'suspended') writeFileSync(file, String(Number(readFileSync(file, 'utf8')) + performance.now() - stoppedAt))
      process().kill('SIGCONT')
    },
  }
}

async function prepare(urls: SoakDatabase['urls']): Promise<void> {
  const db = openDatabase({ url: urls.owner, size: 1, timeoutMs: 60_000, name: 'soak' })
  await migrate(db)
  await ensureLogin(db, 'control', urls.control, 5000)
  await ensureLogin(db, 'runtime', urls.runtime, 5000)
  await db.destroy()
}

async function isWell(url: string): Promise<boolean> {
  return (await isOk(`${url}/readyz`)) && (await isOk(`${url}/metrics`, /\nmecha_keys_feed_fresh 1\n/))
}

function lastLineOf(file: string): string {
  return existsSync(file) ? (readFileSync(file, 'utf8').trimEnd().split('\n').at(-1) ?? '') : ''
}

async function isOk(url: string, has = /(?:)/): Promise<boolean> {
  try {
    const response = await fetch(url, { signal: AbortSignal.timeout(2000) })
    return response.ok && has.test(await response.text())
  } catch {
    return false
  }
}

async function until(holds: () => Promise<boolean>, folder: string): Promise<void> {
  for (const end = performance.now() + PATIENCE_MS; !(await holds()); await sleep(20))
    if (performance.now() > end) throw new Error(`a replica does not recover; the logs are in ${folder}`)
}
