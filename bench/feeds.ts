/**
 * `npm run bench -- --only feeds`: what replicas that follow the change feed cost PostgreSQL, while nothing happens and for each change. The
 * feeds are those of the service, many in this process, on one database. What is counted is the kernel's own account of all of
 * PostgreSQL's processes, less what the same changes cost with nobody following them.
 */

import { randomUUID } from 'node:crypto'
import { setTimeout as sleep } from 'node:timers/promises'
import { sql } from 'kysely'
import { Client } from 'pg'
import { pino } from 'pino'
import { Clock } from '../src/clock.js'
import { Feed } from '../src/runtime/changes/feed.js'
import { familyCpu, findPostmaster } from './cpu.js'
import { seedKeys } from './seed.js'
import { createWorld, type BenchDatabase } from './world.js'

const REPLICAS = [1, 10, 40]
/** Changes per second: none, such as come alone, and a stream of them. */
const RATES = [0, 4, 50, 200]
const BOUND_MS = 10_000

export interface Cost {
  /** PostgreSQL's time on a core, in milliseconds. */
  readonly ms: number
  readonly polls: number
  readonly confirmations: number
  /** Bytes added to PostgreSQL's log. */
  readonly wal: number
}

export async function measureFeeds(seconds: number): Promise<void> {
  const world = await createWorld()
  try {
    const database = await world.database('feeds')
    await seedKeys(database, world, 'feeds^bench', 1000)
    const bare = new Map<number, Cost>()
    for (const rate of RATES) bare.set(rate, await costOfFeeds(database, 0, rate, seconds))
    process.stdout.write('| Replicas | Changes/s | PostgreSQL, ms a change | ms a second | ms a second and replica | Polls a second and replica | Confirmations |\n|---|---|---|---|---|---|---|\n')
    for (const replicas of REPLICAS)
      for (const rate of RATES) {
        const cost = await costOfFeeds(database, replicas, rate, seconds)
        const perSecond = (cost.ms - bare.get(rate)!.ms) / seconds
        const each = (count: number) => (count / seconds / replicas).toFixed(1)
        process.stdout.write(`| ${replicas} | ${rate} | ${rate > 0 ? (perSecond / rate).toFixed(2) : ''} | ${perSecond.toFixed(1)} | ${(perSecond / replicas).toFixed(2)} | ${each(cost.polls)} | ${each(cost.confirmations)} |\n`)
      }
  } finally {
    await world.end()
  }
}

/** Starts so many replicas, changes keys at a rate for some time, and ends them. */
export async function costOfFeeds({ urls, db }: BenchDatabase, replicas: number, rate: number, seconds: number): Promise<Cost> {
  let polls = 0
  const log = pino({ level: 'silent' })
  const feeds = Array.from({ length: replicas }, () => new Feed({
    url: urls.runtime, replicaId: randomUUID(), pollMs: 1000, quietPollMs: () => BOUND_MS / 4, timeoutMs: 5000, maxStalenessMs: BOUND_MS, retentionMs: 3_600_000, hashCost: 0,
    onChanges: async () => {}, onReset: () => {}, onConfirmed: () => {}, onOld: () => {}, onPolled: () => void polls++, clock: new Clock(), log,
  }))
  for (const feed of feeds) feed.start()
  while (!feeds.every((feed) => feed.isFresh())) await sleep(20)
  const changing = new Client({ connectionString: urls.owner })
  await changing.connect()
  const { rows } = await changing.query<{ id: string }>("SELECT id FROM keys WHERE kind = 'mecha'")
  const beats = async () => Number((await sql<{ sum: string | null }>`SELECT sum(beat) FROM replicas`.execute(db)).rows[0]!.sum)
  const wal = async () => Number((await sql<{ at: string }>`SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')::text AS at`.execute(db)).rows[0]!.at)
  // What connecting and planning cost is over.
  await sleep(1500)
  const postmaster = await findPostmaster(changing)
  const before = { ms: familyCpu(postmaster), polls, beats: await beats(), wal: await wal() }
  const start = performance.now()
  for (let n = 0; performance.now() - start < seconds * 1000; n++) {
    if (rate > 0) await changing.query({ name: 'change', text: 'UPDATE keys SET name = $2 WHERE id = $1', values: [rows[n % rows.length]!.id, String(n)] })
    await sleep(Math.max(0, rate > 0 ? start + ((n + 1) * 1000) / rate - performance.now() : seconds * 1000))
  }
  const cost = { ms: familyCpu(postmaster) - before.ms, polls: polls - before.polls, confirmations: (await beats()) - before.beats, wal: (await wal()) - before.wal }
  await changing.end()
  await Promise.all(feeds.map((feed) => feed.stop()))
  return cost
}
