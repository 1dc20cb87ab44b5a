/**
 * How one case is measured: service and ceiling in turn, pair by pair, so that a machine that slows down slows both.
 * The median of the pairs' ratios is what counts.
 */

import type { Case } from './cases.js'
import type { Load } from './load.js'
import { generateLoad } from './sides.js'

export interface Plan {
  readonly pairs: number
  /** Of each measurement. */
  readonly seconds: number
  readonly connections: number
}

/** Medians over the pairs. Rates are requests per second, times milliseconds. */
export interface Row {
  readonly name: string
  readonly service: number
  readonly ceiling: number
  readonly ratio: number
  /** The least and the greatest ratio: how far a pair strays from the others. */
  readonly ratios: readonly [number, number]
  readonly p50: number
  readonly p99: number
}

/** A second of warm-up for each side, then the pairs. */
export async function measure(one: Case, sides: { service: string; ceiling: string }, plan: Plan): Promise<Row> {
  for (const url of [sides.service, sides.ceiling]) await load(one, url, { ...plan, seconds: 1 })
  const pairs: { service: Load; ceiling: Load }[] = []
  while (pairs.length < plan.pairs) pairs.push({ service: await load(one, sides.service, plan), ceiling: await load(one, sides.ceiling, plan) })
  const ratios = pairs.map(({ service, ceiling }) => service.requestsPerSecond / ceiling.requestsPerSecond)
  return {
    name: one.name,
    service: median(pairs.map(({ service }) => service.requestsPerSecond)),
    ceiling: median(pairs.map(({ ceiling }) => ceiling.requestsPerSecond)),
    ratio: median(ratios),
    ratios: [Math.min(...ratios), Math.max(...ratios)],
    p50: median(pairs.map(({ service }) => service.p50)),
    p99: median(pairs.map(({ service }) => service.p99)),
  }
}

async function load({ name, method, path, credential, body }: Case, url: string, { seconds, connections }: Plan): Promise<Load> {
  const headers = { authorization: `Bearer ${credential}`, ...(body !== undefined && { 'content-type': 'application/json' }) }
  const result = await generateLoad({ url: url + path, method, headers, connections, seconds, ...(body !== undefined && { body }) })
  if (result.failures > 0) throw new Error(`${name}: ${result.failures} requests were not answered with 2xx`)
  if (!(result.requestsPerSecond > 0)) throw new Error(`${name}: no request was answered`)
  return result
}

function median(numbers: number[]): number {
  const sorted = numbers.toSorted((a, b) => a - b)
  const middle = sorted.length / 2
  return (sorted[Math.ceil(middle) - 1]! + sorted[Math.floor(middle)]!) / 2
}
