/**
 * The load generator, in a process of its own so that it takes no time from what it measures. Reads an order on
 * standard input and writes the result, both as one line of JSON.
 */

import { createRequire } from 'node:module'
import { text } from 'node:stream/consumers'

export interface Order {
  readonly url: string
  readonly method: 'GET' | 'POST'
  readonly headers: Readonly<Record<string, string>>
  /** `{n}` in it is replaced by a number that no other request has. */
  readonly body?: string
  readonly connections: number
  readonly seconds: number
}

export interface Load {
  readonly requestsPerSecond: number
  readonly p50: number
  readonly p99: number
  /** Answers that were not 2xx, and requests that had none. */
  readonly failures: number
}

interface Result {
  readonly requests: { readonly average: number }
  readonly latency: { readonly p50: number; readonly p99: number }
  readonly non2xx: number
  readonly errors: number
  readonly timeouts: number
}
type Autocannon = (options: object) => Promise<Result>

const autocannon = createRequire(import.meta.url)('autocannon') as Autocannon
const { url, method, headers, body, connections, seconds } = JSON.parse(await text(process.stdin)) as Order
// Numbers of one run are not those of another, against the same database.
let n = Date.now() * 1000
const request = body?.includes('{n}')
  ? { setupRequest: (one: object) => ({ ...one, body: body.replaceAll('{n}', String(n++)) }) }
  : { ...(body !== undefined && { body }) }
const result = await autocannon({ url, method, headers, connections, duration: seconds, requests: [{ method, headers, ...request }] })
const { requests, latency, non2xx, errors, timeouts } = result
const load: Load = { requestsPerSecond: requests.average, p50: latency.p50, p99: latency.p99, failures: non2xx + errors + timeouts }
process.stdout.write(`${JSON.stringify(load)}\n`)
