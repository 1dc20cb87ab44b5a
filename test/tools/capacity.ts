/** The capacity model of `docs/scaling.md`: what measured parts (`docs/capacity.json`, by `npm run bench -- --only capacity`) add up to. */

import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { PACKAGE_ROOT } from '../../src/package-root.js'

/** What was measured. Times are those of a core. */
export interface Parts {
  readonly measured_on: string
  readonly cores: number
  readonly processor: string
  readonly node: string
  readonly verify: { readonly alone_us: number; readonly beside_us: number; readonly through_haproxy_us: number; readonly haproxy_us: number }
  readonly cold_verify: { readonly service_us: number; readonly postgres_us: number }
  readonly issue: Change
  readonly revoke: Change
  readonly feed: { readonly idle_ms_per_s: number; readonly idle_wal_bytes_per_s: number; readonly wakeup_ms: number; readonly confirmation_wal_bytes: number }
  readonly stream: { readonly kB: number; readonly heartbeat_us: number }
  readonly usage: { readonly postgres_us: number; readonly wal_bytes: number }
  readonly size: { readonly key_bytes: number; readonly event_bytes: number; readonly cached_key_bytes: number; readonly idle_mib: number }
}

interface Change {
  readonly service_us: number
  readonly postgres_us: number
  readonly wal_bytes: number
}

/** What is wanted of a deployment. */
export interface Demand {
  readonly name: string
  readonly keys: number
  /** Events in the table for each key. */
  readonly events: number
  /** Keys that are in the memory of each replica: CACHE_MAX_KEYS at most. */
  readonly used: number
  readonly replicas: number
  readonly streams: number
  readonly verifies: number
  readonly colds: number
  readonly issues: number
  readonly changes: number
  /** USAGE_FLUSH_INTERVAL, in seconds. */
  readonly flush: number
}

/** What that takes. Cores are those that are busy: of what a machine has, leave a third. */
export interface Capacity {
  readonly runtime_cores: number
  readonly balancer_cores: number
  readonly control_cores: number
  readonly postgres_cores: number
  readonly of_which_feeds: number
  readonly of_which_usage: number
  readonly connections: number
  readonly wal_mb_per_s: number
  readonly replica_mib: number
  readonly disk_gb: number
}

/** A replica gathers changes for 30 ms, so that it is woken this often at most. */
export const MOST_WAKEUPS = 1000 / 30
/** DATABASE_POOL_SIZE by default, and two control processes. */
const POOL = 10
const CONTROLS = 2

export function capacityOf(demand: Demand, parts: Parts): Capacity {
  const { replicas, changes, issues, colds, verifies, streams, used, flush } = demand
  const wakeups = replicas * Math.min(changes, MOST_WAKEUPS)
  const uses = (replicas * Math.min((verifies / replicas) * flush, used)) / flush
  const feeds = (replicas * parts.feed.idle_ms_per_s + wakeups * parts.feed.wakeup_ms) / 1e3
  const usage = (uses * parts.usage.postgres_us) / 1e6
  return {
    runtime_cores: (verifies * parts.verify.through_haproxy_us + colds * parts.cold_verify.service_us + streams * parts.stream.heartbeat_us) / 1e6,
    balancer_cores: (verifies * parts.verify.haproxy_us) / 1e6,
    control_cores: (issues * parts.issue.service_us + changes * parts.revoke.service_us) / 1e6,
    postgres_cores: feeds + usage + (issues * parts.issue.postgres_us + changes * parts.revoke.postgres_us + colds * parts.cold_verify.postgres_us) / 1e6,
    of_which_feeds: feeds,
    of_which_usage: usage,
    connections: replicas * (POOL + 1) + CONTROLS * POOL,
    wal_mb_per_s: (issues * parts.issue.wal_bytes + changes * parts.revoke.wal_bytes + wakeups * parts.feed.confirmation_wal_bytes + replicas * parts.feed.idle_wal_bytes_per_s + uses * parts.usage.wal_bytes) / 1e6,
    replica_mib: parts.size.idle_mib + (used * parts.size.cached_key_bytes) / 2 ** 20 + ((streams / replicas) * parts.stream.kB) / 1024,
    disk_gb: (demand.keys * (parts.size.key_bytes + demand.events * parts.size.event_bytes)) / 1e9,
  }
}

const DEMANDS: readonly Demand[] = [
  { name: 'small', keys: 1000, events: 5, used: 1000, replicas: 2, streams: 5, verifies: 50, colds: 0.1, issues: 0.01, changes: 0.01, flush: 10 },
  { name: '100,000 keys', keys: 100_000, events: 5, used: 50_000, replicas: 6, streams: 50, verifies: 5000, colds: 10, issues: 1, changes: 1, flush: 10 },
  { name: '5,000,000 keys', keys: 5_000_000, events: 5, used: 100_000, replicas: 40, streams: 1000, verifies: 200_000, colds: 5000, issues: 20, changes: 50, flush: 600 },
]

export function readParts(): Parts {
  return JSON.parse(readFileSync(join(PACKAGE_ROOT, 'docs', 'capacity.json'), 'utf8')) as Parts
}

/** The page's tables, by their marks. */
export function capacityTables(parts: Parts): Record<'parts' | 'examples' | 'limits', string> {
  return { parts: partsTable(parts), examples: examplesTable(parts), limits: limitsTable(parts) }
}

function partsTable({ measured_on, cores, processor, node, verify, cold_verify, issue, revoke, feed, stream, usage, size }: Parts): string {
  const row = (symbol: string, what: string, service: string, postgres: string, wal = '') => `| \`${symbol}\` | ${what} | ${service} | ${postgres} | ${wal} |`
  return [
    `Measured on ${measured_on}, on ${cores} cores (${processor}), with Node.js ${node}:`,
    '',
    '| | Part | The service, on a core | PostgreSQL, on a core | Its log |',
    '|---|---|---|---|---|',
    row('verify', 'a verify of a key in memory, by one process that has nothing beside it', `${verify.alone_us} µs`, 'none'),
    row('verify', 'the same by two processes, on a core each', `${verify.beside_us} µs`, 'none'),
    row('verify', 'the same through HAProxy, which sends each as it comes', `${verify.through_haproxy_us} µs, and ${verify.haproxy_us} µs of HAProxy`, 'none'),
    row('cold', 'a verify of a key that is not in memory', `${cold_verify.service_us} µs`, `${cold_verify.postgres_us} µs`),
    row('issue', 'an issue', `${issue.service_us} µs`, `${issue.postgres_us} µs`, `${issue.wal_bytes} B`),
    row('change', 'a revocation with its receipt', `${revoke.service_us} µs`, `${revoke.postgres_us} µs`, `${revoke.wal_bytes} B`),
    row('idle', 'a feed to which nothing happens, a second', '', `${feed.idle_ms_per_s} ms`, `${feed.idle_wal_bytes_per_s} B`),
    row('wake', 'a feed that is woken by a change, polls and confirms', '', `${feed.wakeup_ms} ms`, `${feed.confirmation_wal_bytes} B`),
    row('beat', 'a stream of changes, a second', `${stream.heartbeat_us} µs`, 'none'),
    row('use', 'to write that a key was used', '', `${usage.postgres_us} µs`, `${usage.wal_bytes} B`),
    '',
    `A key takes ${size.key_bytes} B of disk with its indexes and its time of use, an event ${size.event_bytes} B, both as built at one go and up to twice that after years; a key in memory ${size.cached_key_bytes} B, a stream ${stream.kB} kB, and a process that serves both planes ${size.idle_mib} MiB before it knows a key.`,
  ].join('\n')
}

function examplesTable(parts: Parts): string {
  const all = DEMANDS.map((demand) => ({ demand, takes: capacityOf(demand, parts), tenSeconds: capacityOf({ ...demand, flush: 10 }, parts) }))
  const row = (what: string, of: (one: (typeof all)[number]) => string) => `| ${what} | ${all.map(of).join(' | ')} |`
  return [
    `| | ${DEMANDS.map(({ name }) => name).join(' | ')} |`,
    `|---|${DEMANDS.map(() => '---').join('|')}|`,
    row('keys, and events for each', ({ demand }) => `${count(demand.keys)}, ${demand.events}`),
    row('keys in the memory of each replica', ({ demand }) => count(demand.used)),
    row('`R`, replicas', ({ demand }) => count(demand.replicas)),
    row('`G`, gateways with a stream', ({ demand }) => count(demand.streams)),
    row('`V`, verifies a second that reach the service, of which are cold', ({ demand }) => `${count(demand.verifies)}, ${count(demand.colds)}`),
    row('`I`, issues a second', ({ demand }) => count(demand.issues)),
    row('`C`, changes a second', ({ demand }) => count(demand.changes)),
    row('`F`, `USAGE_FLUSH_INTERVAL` in seconds', ({ demand }) => count(demand.flush)),
    row('**cores of the runtime plane**, all replicas', ({ takes }) => number(takes.runtime_cores)),
    row('**cores of HAProxy**', ({ takes }) => number(takes.balancer_cores)),
    row('**cores of the control plane**', ({ takes }) => number(takes.control_cores)),
    row('**cores of PostgreSQL**', ({ takes }) => number(takes.postgres_cores)),
    row('of which feeds', ({ takes }) => number(takes.of_which_feeds)),
    row('of which times of use', ({ takes }) => number(takes.of_which_usage)),
    row('cores of PostgreSQL if `F` were 10', ({ tenSeconds }) => number(tenSeconds.postgres_cores)),
    row('**connections**, at most', ({ takes }) => count(takes.connections)),
    row('**log**, MB a second', ({ takes }) => number(takes.wal_mb_per_s)),
    row('log if `F` were 10', ({ tenSeconds }) => number(tenSeconds.wal_mb_per_s)),
    row('**memory of a replica**, MiB', ({ takes }) => number(takes.replica_mib)),
    row('**disk**, GB', ({ takes }) => number(takes.disk_gb)),
  ].join('\n')
}

/** Busy cores that a primary of eight is to have at most. */
const BUSY = 5

function limitsTable({ feed, issue, revoke, cold_verify, usage }: Parts): string {
  const perSecond = (us: number) => `${count(rounded((BUSY * 1e6) / us))} a second`
  const replicas = (changes: number) => count(rounded((BUSY * 1000) / (feed.idle_ms_per_s + Math.min(changes, MOST_WAKEUPS) * feed.wakeup_ms)))
  return [
    `| With ${BUSY} busy cores and nothing else to do, PostgreSQL carries | |`,
    '|---|---|',
    `| replicas, with one change a second | ${replicas(1)} |`,
    `| replicas, with any number of changes a second | ${replicas(MOST_WAKEUPS)} |`,
    `| issues, for many organizations | ${perSecond(issue.postgres_us)} |`,
    `| revocations with their receipts, and one replica | ${perSecond(revoke.postgres_us)} |`,
    `| cold verifies | ${perSecond(cold_verify.postgres_us)} |`,
    `| times of use | ${perSecond(usage.postgres_us)} |`,
  ].join('\n')
}

function number(value: number): string {
  return String(rounded(value))
}

/** Two digits are more than the parts are good for. */
function rounded(value: number): number {
  return Number(value.toPrecision(2))
}

function count(value: number): string {
  return value.toLocaleString('en-US')
}

/** A text whose generated parts are as they should be. */
export function withCapacity(markdown: string, parts: Parts): string {
  return Object.entries(capacityTables(parts)).reduce((text, [name, table]) => {
    const block = new RegExp(`<!-- ${name}:start -->[^]*?<!-- ${name}:end -->`)
    if (!block.test(text)) throw new Error(`the marks of ${name} are missing`)
    return text.replace(block, () => `<!-- ${name}:start -->\n\n${table}\n\n<!-- ${name}:end -->`)
  }, markdown)
}
