/** The capacity model of `docs/scaling.md`. */

import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { PACKAGE_ROOT } from '../../src/package-root.js'
import { capacityOf, readParts, withCapacity, type Demand } from '../tools/capacity.js'

const PAGE = readFileSync(join(PACKAGE_ROOT, 'docs', 'scaling.md'), 'utf8')
const NOTHING: Demand = { name: '', keys: 0, events: 0, used: 0, replicas: 1, streams: 0, verifies: 0, colds: 0, issues: 0, changes: 0, flush: 10 }

t.test('the tables of docs/scaling.md are what follows from the measured parts', async (t) => {
  t.ok(PAGE === withCapacity(PAGE, readParts()), 'they are up to date: run npm run docs')
})

t.test('another measurement would change each of them', async (t) => {
  const parts = readParts()
  const other = withCapacity(PAGE, { ...parts, issue: { ...parts.issue, postgres_us: parts.issue.postgres_us * 3 } })
  for (const name of ['parts', 'examples', 'limits']) t.not(blockOf(other, name), blockOf(PAGE, name), name)
})

t.test('the sums are those of the formulas', async (t) => {
  const { verify, cold_verify, stream, feed, issue, revoke, usage, size } = readParts()
  const takes = (demand: Partial<Demand>) => capacityOf({ ...NOTHING, ...demand }, readParts())
  const near = (found: number, expected: number, what: string) => t.ok(Math.abs(found - expected) <= Math.abs(expected) * 1e-9, `${what}: ${found} is ${expected}`)
  near(takes({ verifies: 1000, colds: 10, streams: 100 }).runtime_cores, (1000 * verify.through_haproxy_us + 10 * cold_verify.service_us + 100 * stream.heartbeat_us) / 1e6, 'the runtime plane')
  near(takes({ issues: 3, changes: 2 }).control_cores, (3 * issue.service_us + 2 * revoke.service_us) / 1e6, 'the control plane')
  near(takes({ replicas: 40 }).postgres_cores, (40 * feed.idle_ms_per_s) / 1000, 'feeds to which nothing happens')
  const woken = takes({ replicas: 40, changes: 500 }).of_which_feeds
  near(woken, takes({ replicas: 40, changes: 5000 }).of_which_feeds, 'more changes wake nobody more often')
  near(woken, (40 * (feed.idle_ms_per_s + (1000 / 30) * feed.wakeup_ms)) / 1000, 'feeds that are woken all the time')
  near(takes({ replicas: 2, verifies: 100, used: 1000 }).of_which_usage, (100 * usage.postgres_us) / 1e6, 'uses of keys that are each used once')
  near(takes({ replicas: 2, verifies: 1e6, used: 1000 }).of_which_usage, (200 * usage.postgres_us) / 1e6, 'uses of keys that are each used again and again')
  near(takes({ issues: 1, replicas: 2 }).wal_mb_per_s, (issue.wal_bytes + 2 * feed.idle_wal_bytes_per_s) / 1e6, 'the log')
  near(takes({ keys: 1e6, events: 2 }).disk_gb, (size.key_bytes + 2 * size.event_bytes) / 1e3, 'the disk')
  t.equal(takes({ replicas: 40 }).connections, 40 * 11 + 20)
})

function blockOf(text: string, name: string): string {
  return text.split(`<!-- ${name}:start -->`)[1]!.split(`<!-- ${name}:end -->`)[0]!
}
