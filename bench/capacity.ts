/**
 * `npm run bench -- --only capacity`: the parts that docs/scaling.md adds up. Time is that of a core by the kernel's own account, of the service,
 * of PostgreSQL's processes and of HAProxy. Written to `bench/results/capacity.json`; the page rests on a copy of it, `docs/capacity.json`.
 */

import { spawn, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { cpus, availableParallelism, tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { sql } from 'kysely'
import { Client } from 'pg'
import { freePort } from '../src/db/embedded/free-port.js'
import { PACKAGE_ROOT } from '../src/package-root.js'
import { recordUses } from '../src/runtime/usage/store.js'
import { familyCpu, findPostmaster, processCpu } from './cpu.js'
import { costOfFeeds } from './feeds.js'
import type { Order } from './load.js'
import { median, type Plan } from './pairs.js'
import { ask, generateLoad, rssOf } from './processes.js'
import { fillOnce } from './scale.js'
import { seedKeys } from './seed.js'
import { costOfStreams } from './streams.js'
import { createWorld, type BenchDatabase, type Service, type World } from './world.js'

/** Verifies a second and process: what is compared has the same to do in the same time, and two cores have time left. */
const RATE = 6000
/** Times the size of the memory that the service is given, so that none is ever found there. */
const COLD_KEYS = 2000
const REVOCATIONS = 400
const USED = 10_000
/** Rows by which the size of one is told. */
const ROWS = 50_000
/** Replicas whose feeds are followed, and changes a second that come alone. */
const REPLICAS = 10
const LONELY = 4
/** Changes a second by which one is measured that nobody follows. */
const STEADY = 50
const ORGANIZATIONS = 32
const PATH = `${process.env['PATH']}:/usr/sbin`

export async function measureCapacity(plan: Plan): Promise<void> {
  const world = await createWorld()
  try {
    const measured = {
      measured_on: new Date().toISOString().slice(0, 10), cores: availableParallelism(), processor: cpus()[0]?.model.trim() ?? 'unknown', node: process.version,
      verify: await measureVerify(world, plan),
      cold_verify: await measureCold(world, plan),
      issue: await measureIssue(world, plan),
      revoke: await measureRevoke(world),
      feed: await measureFeed(world, plan),
      stream: await measureStream(world, plan),
      size: await measureSize(world),
      usage: await measureUsage(world),
    }
    const folder = join(PACKAGE_ROOT, 'bench', 'results')
    mkdirSync(folder, { recursive: true })
    const text = `${JSON.stringify(measured, (_name, value: unknown) => (typeof value === 'number' ? Number(value.toPrecision(3)) : value), 2)}\n`
    writeFileSync(join(folder, 'capacity.json'), text)
    process.stdout.write(text)
  } finally {
    await world.end()
  }
}

/**
 * A key that is in memory: asked of one process, of two on a core each, and of two through HAProxy. What others do on the machine at the moment
 * makes a turn dearer and never cheaper, so the least of several is what counts.
 */
async function measureVerify(world: World, { seconds, pairs }: Plan) {
  const database = await world.database('hot')
  const services = [await world.service(database, { USAGE_FLUSH_INTERVAL: '1h' }), await world.service(database, { USAGE_FLUSH_INTERVAL: '1h' })] as const
  services.forEach(({ pid }, core) => void spawnSync('taskset', ['-a', '-c', '-p', String(core % availableParallelism()), String(pid)]))
  const { plaintext_key } = await services[0].call('POST', '/v1/keys', { mecha: 'hot^bench' })
  const orderFor = ({ gateway }: Service, url: string): Order => ({ url: `${url}/v1/verify`, method: 'POST', headers: gateway, bodies: [JSON.stringify({ key: plaintext_key })], connections: 16, seconds, rate: RATE })
  const ask = (one: Service) => generateLoad(orderFor(one, one.url))
  const [balancer, stopBalancer] = await startBalancer(services.map(({ url }) => url))
  const figures = { alone_us: [] as number[], beside_us: [] as number[], through_haproxy_us: [] as number[], haproxy_us: [] as number[] }
  for (const service of services) await ask(service)
  for (let pair = 0; pair < pairs; pair++) {
    const alone = await microseconds([services[0].pid], () => ask(services[0]))
    const beside = await microseconds(services.map(({ pid }) => pid), async () => sum(await Promise.all(services.map(ask))))
    figures.alone_us.push(alone[0]!)
    // Of both, for as many requests as both of them had.
    figures.beside_us.push(beside[0]! + beside[1]!)
    if (!balancer) continue
    const through = await microseconds([...services.map(({ pid }) => pid), balancer.pid], () => generateLoad({ ...orderFor(services[0], balancer.url), rate: 2 * RATE }))
    figures.through_haproxy_us.push(through[0]! + through[1]!)
    figures.haproxy_us.push(through[2]!)
  }
  await stopBalancer()
  for (const service of services) await service.stop()
  return Object.fromEntries(Object.entries(figures).flatMap(([name, values]) => (values.length > 0 ? [[name, Math.min(...values)]] : [])))
}

/** The shipped configuration, with these processes. Nothing where there is no HAProxy. */
async function startBalancer(urls: readonly string[]): Promise<[{ url: string; pid: number } | undefined, () => Promise<void>]> {
  if (spawnSync('haproxy', ['-v'], { env: { PATH } }).status !== 0) return [undefined, async () => {}]
  const folder = mkdtempSync(join(tmpdir(), 'mecha-keys-bench-'))
  const [port, file] = [await freePort(), join(folder, 'haproxy.cfg')]
  const addresses = [...urls, ...urls].map((url) => new URL(url).host)
  const shipped = readFileSync(join(PACKAGE_ROOT, 'deploy', 'haproxy', 'haproxy.cfg'), 'utf8')
  const servers = shipped.replace(/(?: {2}server \S+ \S+\n?)+/g, addresses.slice(0, urls.length).map((address, i) => `  server runtime-${i} ${address}\n`).join(''))
  writeFileSync(file, servers.replace('bind :8080', `bind 127.0.0.1:${port}`))
  const child = spawn('haproxy', ['-db', '-f', file], { env: { PATH }, stdio: 'ignore' })
  const url = `http://127.0.0.1:${port}`
  while (!(await fetch(`${url}/.well-known/jwks.json`).then(({ ok }) => ok, () => false))) await sleep(50)
  const stop = async () => {
    const exited = once(child, 'exit')
    child.kill('SIGTERM')
    await exited
    rmSync(folder, { recursive: true })
  }
  return [{ url, pid: child.pid! }, stop]
}

/** Keys of which none is in memory. */
async function measureCold(world: World, { seconds, pairs, connections }: Plan) {
  const database = await world.database('cold')
  const keys = await seedKeys(database, world, 'cold^bench', COLD_KEYS)
  const service = await world.service(database, { CACHE_MAX_KEYS: '100' })
  const order: Order = { url: `${service.url}/v1/verify`, method: 'POST', headers: service.gateway, bodies: keys.map((key) => JSON.stringify({ key })), connections, seconds }
  await generateLoad(order)
  const { service_us, postgres_us } = await costOf(database, service, pairs, () => generateLoad(order))
  await service.stop()
  return { service_us, postgres_us }
}

async function measureIssue(world: World, { seconds, pairs, connections }: Plan) {
  const database = await world.database('issue')
  const service = await world.service(database)
  const authorizations = await service.operatorsOf(ORGANIZATIONS)
  const order: Order = { url: `${service.url}/v1/keys`, method: 'POST', headers: service.operator, bodies: ['{"mecha":"m{n}^bench"}'], authorizations, connections, seconds }
  await generateLoad(order)
  const cost = await costOf(database, service, pairs, () => generateLoad(order))
  await service.stop()
  return cost
}

/** Eight at a time, with the receipt of the one replica that there is. */
async function measureRevoke(world: World) {
  const database = await world.database('revoke')
  const service = await world.service(database, { MAX_ACTIVE_KEYS_PER_MECHA: '1000' })
  const turn = async () => {
    const issued = await Promise.all(Array.from({ length: REVOCATIONS }, (_, n) => service.call('POST', '/v1/keys', { mecha: `revoked${n % 8}^bench` }) as Promise<{ key: { id: string } }>))
    const revokeAll = async () => {
      for (let one = issued.pop(); one; one = issued.pop()) await service.call('POST', `/v1/keys/${one.key.id}/revoke`)
    }
    return costOf(database, service, 1, async () => {
      await Promise.all(Array.from({ length: 8 }, revokeAll))
      return { rate: REVOCATIONS, seconds: 1 }
    })
  }
  await turn()
  const cost = await turn()
  await service.stop()
  return cost
}

/** What following costs PostgreSQL: while nothing happens, and for each time that a replica is woken, which is 33 times a second at most. */
async function measureFeed(world: World, { seconds }: Plan) {
  const database = await world.database('feeds')
  await seedKeys(database, world, 'feeds^bench', 1000)
  const bare = await costOfFeeds(database, 0, STEADY, seconds)
  const idle = await costOfFeeds(database, REPLICAS, 0, 3 * seconds)
  const lonely = await costOfFeeds(database, REPLICAS, LONELY, 2 * seconds)
  const change_ms = bare.ms / (STEADY * seconds)
  const idle_ms_per_s = idle.ms / (3 * seconds) / REPLICAS
  const changes = LONELY * 2 * seconds
  return {
    idle_ms_per_s, idle_wal_bytes_per_s: idle.wal / (3 * seconds) / REPLICAS,
    wakeup_ms: (lonely.ms - changes * change_ms - idle_ms_per_s * 2 * seconds * REPLICAS) / (changes * REPLICAS),
    change_ms, change_wal_bytes: bare.wal / (STEADY * seconds),
    confirmation_wal_bytes: lonely.confirmations > 0 ? (lonely.wal - changes * (bare.wal / (STEADY * seconds))) / lonely.confirmations : 0,
  }
}

async function measureStream(world: World, { seconds }: Plan) {
  const service = await world.service(await world.database('streams'), { CHANGE_STREAMS_MAX: '4000' })
  const [some, more] = (await costOfStreams(service, [500, 1500], seconds)) as [Awaited<ReturnType<typeof costOfStreams>>[0], Awaited<ReturnType<typeof costOfStreams>>[0]]
  await service.stop()
  return { kB: ((more.mebibytes - some.mebibytes) * 1024) / 1000, heartbeat_us: more.heartbeat_us }
}

/** What a row takes with all of its indexes, as built at one go; and memory. */
async function measureSize(world: World) {
  const database = await world.database('size')
  await fillOnce(database, world, undefined, ROWS)
  const bytesOf = async (...tables: string[]) => {
    const { rows } = await sql<{ bytes: number }>`
      SELECT sum(pg_total_relation_size(name::regclass) + (SELECT coalesce(sum(pg_total_relation_size(relid)), 0) FROM pg_partition_tree(name::regclass) WHERE level > 0))::float AS bytes
      FROM unnest(${tables}::text[]) name`.execute(database.db)
    return rows[0]!.bytes / ROWS
  }
  const size = { key_bytes: await bytesOf('keys', 'mechas', 'key_usage'), event_bytes: await bytesOf('events') }
  const { bytes: cached_key_bytes } = await ask<{ bytes: number }>('dist/bench/memory.js', { url: database.urls.runtime, count: ROWS })
  const service = await world.service(database, { PLANES: 'both' })
  await sleep(2000)
  const idle_mib = rssOf(service.pid)
  await service.stop()
  return { ...size, cached_key_bytes, idle_mib }
}

/** What it costs PostgreSQL to write that a key was used, which each replica does once in USAGE_FLUSH_INTERVAL for each key that it verified. */
async function measureUsage(world: World) {
  const database = await world.database('size')
  const { rows } = await sql<{ id: string }>`SELECT id FROM keys WHERE kind = 'mecha' LIMIT ${USED}`.execute(database.db)
  const { postgres_us, wal_bytes } = await costOf(database, process, 5, async () => {
    for (let first = 0; first < rows.length; first += 1000)
      await recordUses(database.db, rows.slice(first, first + 1000).map(({ id }) => ({ id, usedAt: Date.now(), usedBy: null, org_id: null, isGathered: false })))
    return { rate: rows.length, seconds: 1 }
  })
  return { postgres_us, wal_bytes }
}

interface Cost {
  readonly service_us: number
  readonly postgres_us: number
  readonly wal_bytes: number
}

/** What each request costs the service and PostgreSQL, and how much it adds to the log: medians. */
async function costOf(database: BenchDatabase, { pid }: { readonly pid: number }, turns: number, act: () => Promise<{ readonly rate: number; readonly seconds: number }>): Promise<Cost> {
  const client = new Client({ connectionString: database.urls.owner })
  await client.connect()
  const postmaster = await findPostmaster(client)
  const costs: Cost[] = []
  for (let turn = 0; turn < turns; turn++) {
    const [service, postgres, wal] = [processCpu(pid), familyCpu(postmaster), await walOf(database)]
    const { rate, seconds } = await act()
    const count = rate * seconds
    costs.push({ service_us: ((processCpu(pid) - service) * 1000) / count, postgres_us: ((familyCpu(postmaster) - postgres) * 1000) / count, wal_bytes: (await wal()) / count })
  }
  await client.end()
  const of = (name: keyof Cost) => median(costs.map((cost) => cost[name]))
  return { service_us: of('service_us'), postgres_us: of('postgres_us'), wal_bytes: of('wal_bytes') }
}

/** Begins to count the bytes of the log. */
async function walOf({ db }: BenchDatabase): Promise<() => Promise<number>> {
  const position = async () => Number((await sql<{ at: string }>`SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')::text AS at`.execute(db)).rows[0]!.at)
  const before = await position()
  return async () => (await position()) - before
}

/** What each request cost some processes, in microseconds of a core. */
async function microseconds(pids: readonly number[], act: () => Promise<{ readonly rate: number; readonly seconds: number }>): Promise<number[]> {
  const before = pids.map(processCpu)
  const { rate, seconds } = await act()
  return pids.map((pid, i) => ((processCpu(pid) - before[i]!) * 1000) / (rate * seconds))
}

function sum(loads: readonly { readonly rate: number; readonly seconds: number }[]): { rate: number; seconds: number } {
  return { rate: loads.reduce((total, { rate }) => total + rate, 0), seconds: loads[0]!.seconds }
}
