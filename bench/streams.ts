/**
 * `npm run bench -- --only streams`: what gateways that follow `/v1/changes` cost a replica: its memory for each, its time for each message
 * that all is well, and what many of them ask when they come back at once.
 */

import { connect, type Socket } from 'node:net'
import { setTimeout as sleep } from 'node:timers/promises'
import { sql } from 'kysely'
import { threadCpu } from './cpu.js'
import { rssOf } from './processes.js'
import { createWorld, type Service } from './world.js'

/** How many are open at once, one after another. */
const COUNTS = [10, 200, 1000, 2000]
/** How many of them come back at once. */
const BACK = 1000

export interface Stream {
  readonly socket: Socket
  /** All that has come; it is read to its end and not kept. */
  lastId: string | undefined
  confirmations: number
}

export async function measureStreams(seconds: number): Promise<void> {
  const world = await createWorld({ flags: ['shared_preload_libraries=pg_stat_statements'] })
  try {
    const database = await world.database('streams')
    await sql`CREATE EXTENSION pg_stat_statements`.execute(database.db)
    const service = await world.service(database, { CHANGE_STREAMS_MAX: '4000', MAX_ACTIVE_KEYS_PER_MECHA: '1000' })
    process.stdout.write('| Streams | Memory, MiB | A heartbeat, µs | The service, ms a second |\n|---|---|---|---|\n')
    const streams: Stream[] = []
    for (const { count, mebibytes, heartbeat_us, ms_per_s } of await costOfStreams(service, COUNTS, seconds, streams))
      process.stdout.write(`| ${count} | ${mebibytes.toFixed(1)} | ${heartbeat_us.toFixed(1)} | ${ms_per_s.toFixed(1)} |\n`)

    const gone = streams.slice(0, BACK)
    for (const { socket } of gone) socket.destroy()
    const { key } = await service.call('POST', '/v1/keys', { mecha: 'missed^bench' })
    await service.call('POST', `/v1/keys/${key.id}/revoke`)
    await sql`SELECT pg_stat_statements_reset()`.execute(database.db)
    const [start, cpu] = [performance.now(), threadCpu(service.pid)]
    await Promise.all(gone.map(({ lastId }) => open(service, lastId)))
    const [ms, took] = [performance.now() - start, threadCpu(service.pid) - cpu]
    const { rows } = await sql<{ calls: number }>`SELECT coalesce(sum(calls), 0)::int AS calls FROM pg_stat_statements WHERE query LIKE '%pg_locks%' AND query LIKE '%changes%'`.execute(database.db)
    process.stdout.write(`${gone.length} streams that come back: all confirmed after ${ms.toFixed(0)} ms, ${took.toFixed(0)} of the service on a core; ${rows[0]!.calls} queries\n`)
  } finally {
    await world.end()
  }
}

export interface StreamsCost {
  readonly count: number
  /** Memory of the process with so many. */
  readonly mebibytes: number
  /** Time on a core, of the thread that runs JavaScript: for each message that all is well, and of a second. What the process does without streams is not in it. */
  readonly heartbeat_us: number
  readonly ms_per_s: number
}

/** Opens streams until there are so many, and measures, for each of some numbers. */
export async function costOfStreams(service: Service, counts: readonly number[], seconds: number, streams: Stream[] = []): Promise<StreamsCost[]> {
  const idle = await timeOf(service, [], seconds)
  const costs: StreamsCost[] = []
  for (const count of counts) {
    streams.push(...(await openAll(service, count - streams.length)))
    const mebibytes = await settledMemory(service)
    const busy = await timeOf(service, streams, seconds)
    const ms = busy.ms - idle.ms
    costs.push({ count, mebibytes, heartbeat_us: (ms * 1000) / busy.confirmations, ms_per_s: ms / seconds })
  }
  return costs
}

async function timeOf({ pid }: Service, streams: readonly Stream[], seconds: number): Promise<{ ms: number; confirmations: number }> {
  const count = () => streams.reduce((sum, { confirmations }) => sum + confirmations, 0)
  const before = { ms: threadCpu(pid), confirmations: count() }
  await sleep(seconds * 1000)
  return { ms: threadCpu(pid) - before.ms, confirmations: count() - before.confirmations }
}

async function openAll(service: Service, count: number): Promise<Stream[]> {
  const streams: Stream[] = []
  while (streams.length < count) streams.push(...(await Promise.all(Array.from({ length: Math.min(50, count - streams.length) }, () => open(service)))))
  return streams
}

/** Begins a stream. Resolves when it is confirmed. */
function open({ url, gateway }: Service, lastEventId?: string): Promise<Stream> {
  const { hostname, port } = new URL(url)
  return new Promise((resolve, reject) => {
    const socket = connect(Number(port), hostname)
    const stream: Stream = { socket, lastId: undefined, confirmations: 0 }
    socket.write(`GET /v1/changes HTTP/1.1\r\nHost: x\r\nAuthorization: ${gateway['authorization']}\r\n${lastEventId ? `Last-Event-ID: ${lastEventId}\r\n` : ''}\r\n`)
    socket.on('error', reject).on('close', () => reject(new Error('a stream ended'))).on('data', (bytes: Buffer) => {
      const text = bytes.toString('latin1')
      if (text.startsWith('HTTP/1.1 ') && !text.startsWith('HTTP/1.1 200')) reject(new Error(text.slice(0, 200)))
      stream.lastId = /[\s\S]*^id: (.*)$/m.exec(text)?.[1] ?? stream.lastId
      stream.confirmations += text.split('event: confirmed').length - 1
      if (stream.confirmations > 0) resolve(stream)
    })
  })
}

/** The process's own memory when it does not grow any more, in MiB. */
async function settledMemory({ pid }: Service): Promise<number> {
  let last = rssOf(pid)
  for (let turns = 0; turns < 10; turns++) {
    await sleep(1000)
    const now = rssOf(pid)
    if (turns > 3 && Math.abs(now - last) < 0.5) return now
    last = now
  }
  return last
}
