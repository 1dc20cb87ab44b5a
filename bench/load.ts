/**
 * The load generator, in a process of its own so that it takes no time from what it measures. Reads an order on
 * standard input and writes the result, both as one line of JSON.
 */

import { createRequire } from 'node:module'
import { join } from 'node:path'
import { createHistogram } from 'node:perf_hooks'
import { text } from 'node:stream/consumers'
import { PACKAGE_ROOT } from '../src/package-root.js'

export interface Order {
  readonly url: string
  readonly method: 'GET' | 'POST'
  readonly headers: Readonly<Record<string, string>>
  /** Sent in turn, over all connections. `{n}` in one is replaced by a number that no other request has. */
  readonly bodies?: readonly string[]
  /** Values of the header of that name, sent in turn. */
  readonly authorizations?: readonly string[]
  readonly connections: number
  readonly seconds: number
  /** Requests per second at most; otherwise as many as there are answers. */
  readonly rate?: number
}

export interface Load {
  /** Answers with 2xx per second. */
  readonly rate: number
  readonly seconds: number
  /** Milliseconds, of the answers with 2xx. */
  readonly p50: number
  readonly p99: number
  /** Answers with 503 per second. */
  readonly shed: number
  /** Answers that were neither, and requests that had none. */
  readonly failures: number
  /** Time of a core that the generator took, in microseconds. */
  readonly cpu_us: number
}

interface Instance extends Promise<{ readonly duration: number; readonly errors: number; readonly timeouts: number }> {
  on(event: 'response', listener: (client: unknown, status: number, bytes: number, ms: number) => void): void
}
type Autocannon = (options: object, done: (error: Error | null, result: Awaited<Instance>) => void) => Instance

const autocannon = createRequire(join(PACKAGE_ROOT, 'bench', 'package.json'))('autocannon') as Autocannon
const { url, method, headers, bodies, authorizations, connections, seconds, rate } = JSON.parse(await text(process.stdin)) as Order

// Numbers of one run are not those of another, against the same database.
let n = Date.now() * 1000
let sent = 0
const isVaried = authorizations || (bodies && (bodies.length > 1 || bodies[0]!.includes('{n}')))
const vary = (one: object) => {
  const i = sent++
  return {
    ...one,
    ...(bodies && { body: bodies[i % bodies.length]!.replace('{n}', String(n++)) }),
    ...(authorizations && { headers: { ...headers, authorization: authorizations[i % authorizations.length] } }),
  }
}
const request = {
  method, headers,
  ...(bodies && !isVaried && { body: bodies[0] }),
  ...(isVaried && { setupRequest: vary }),
}

const before = process.cpuUsage()
const microseconds = createHistogram()
const answers = { good: 0, shed: 0, other: 0 }
const result = await new Promise<Awaited<Instance>>((resolve, reject) => {
  const instance = autocannon(
    { url, connections, duration: seconds, requests: [request], ...(rate !== undefined && { overallRate: rate }) },
    (error, ended) => (error ? reject(error) : resolve(ended)),
  )
  instance.on('response', (_client, status, _bytes, ms) => {
    if (status === 503) return void answers.shed++
    if (status < 200 || status > 299) return void answers.other++
    answers.good++
    microseconds.record(Math.max(1, Math.round(ms * 1000)))
  })
})
const loaded = process.cpuUsage(before)
const load: Load = {
  rate: answers.good / result.duration,
  seconds: result.duration,
  p50: microseconds.percentile(50) / 1000,
  p99: microseconds.percentile(99) / 1000,
  shed: answers.shed / result.duration,
  failures: answers.other + result.errors + result.timeouts,
  cpu_us: loaded.user + loaded.system,
}
process.stdout.write(`${JSON.stringify(load)}\n`)
