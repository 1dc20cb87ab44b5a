/**
 * `npm run bench`: what the service does in a second, beside the ceiling (`ceiling.ts`) in the same run.
 *
 * Both sides of a ratio are measured in turn, pair by pair, and the median of the pairs' ratios is what counts: a
 * machine that slows down slows both. Options: `--seconds N` for each measurement, `--pairs N`, `--connections N`.
 */

import { spawn, type ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { availableParallelism, tmpdir } from 'node:os'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { json } from 'node:stream/consumers'
import { parseArgs } from 'node:util'
import { PACKAGE_ROOT } from '../src/package-root.js'
import type { Load, Order } from './load.js'

const { values } = parseArgs({
  options: { seconds: { type: 'string', default: '5' }, pairs: { type: 'string', default: '5' }, connections: { type: 'string', default: '32' } },
})
const [seconds, pairs, connections] = [Number(values.seconds), Number(values.pairs), Number(values.connections)]

interface Case {
  readonly name: string
  readonly method: 'GET' | 'POST'
  readonly path: string
  readonly credential: string
  readonly body?: string
}

interface Row {
  readonly name: string
  readonly service: number
  readonly ceiling: number
  readonly ratio: number
  readonly p99: number
}

const dataDir = mkdtempSync(join(tmpdir(), 'mecha-keys-bench-'))
const children: ChildProcess[] = []
try {
  const service = await startService()
  const ceiling = await startCeiling()
  const rows: Row[] = []
  for (const one of await cases(service)) rows.push(await measure(one, service.url, ceiling))
  report(rows)
} finally {
  for (const child of children) child.kill('SIGTERM')
  await Promise.all(children.filter((child) => child.exitCode === null).map((child) => once(child, 'exit')))
  rmSync(dataDir, { recursive: true, force: true })
}

interface Service {
  readonly url: string
  readonly operator: string
  readonly gateway: string
}

/** What is measured. */
async function cases({ url, operator, gateway }: Service): Promise<Case[]> {
  const key = await issue(url, operator, 'verified^bench')
  for (let i = 0; i < 60; i++) await issue(url, operator, 'listed^bench')
  const forged = key.slice(0, -20) + key.slice(-19) + 'x'
  return [
    { name: 'verify, a valid key', method: 'POST', path: '/v1/verify', credential: gateway, body: JSON.stringify({ key }) },
    { name: 'verify, a malformed key', method: 'POST', path: '/v1/verify', credential: gateway, body: JSON.stringify({ key: forged }) },
    { name: 'issue, a Mecha each', method: 'POST', path: '/v1/keys', credential: operator, body: JSON.stringify({ mecha: 'm{n}^bench' }) },
    { name: 'list, 50 of one Mecha', method: 'GET', path: '/v1/keys?mecha=listed%5Ebench', credential: operator },
  ]
}

/** A warm-up of each side, then the pairs. */
async function measure(one: Case, service: string, ceiling: string): Promise<Row> {
  process.stdout.write(`${one.name} …\n`)
  for (const url of [service, ceiling]) await load(one, url, 1)
  const loads: [Load, Load][] = []
  for (let i = 0; i < pairs; i++) loads.push([await load(one, service, seconds), await load(one, ceiling, seconds)])
  return {
    name: one.name,
    service: median(loads.map(([ours]) => ours.requestsPerSecond)),
    ceiling: median(loads.map(([, bare]) => bare.requestsPerSecond)),
    ratio: median(loads.map(([ours, bare]) => ours.requestsPerSecond / bare.requestsPerSecond)),
    p99: median(loads.map(([ours]) => ours.p99)),
  }
}

async function load({ name, method, path, credential, body }: Case, url: string, duration: number): Promise<Load> {
  const order: Order = {
    url: url + path, method, connections, seconds: duration,
    headers: { authorization: `Bearer ${credential}`, ...(body && { 'content-type': 'application/json' }) },
    ...(body && { body }),
  }
  const child = start('load.js', {})
  child.stdin!.end(JSON.stringify(order))
  const result = (await json(child.stdout!)) as Load
  if (result.failures > 0) throw new Error(`${name}: ${result.failures} requests were not answered as they should be`)
  return result
}

function report(rows: Row[]): void {
  const table = rows.map(({ name, service, ceiling, ratio, p99 }) => ({
    '': name, 'service, /s': Math.round(service), 'ceiling, /s': Math.round(ceiling), 'service ÷ ceiling': ratio.toFixed(3), 'p99, ms': p99,
  }))
  process.stdout.write(`\nMedians of ${pairs} pairs, ${seconds} s each, ${connections} connections, ${availableParallelism()} cores, Node.js ${process.version}\n`)
  console.table(Object.fromEntries(table.map(({ '': name, ...row }) => [name, row])))
  const folder = join(PACKAGE_ROOT, 'bench', 'results')
  mkdirSync(folder, { recursive: true })
  writeFileSync(join(folder, 'latest.json'), JSON.stringify({ seconds, pairs, connections, node: process.version, rows }, null, 2))
}

// ── Processes ──

/** The service as it is shipped, on an embedded PostgreSQL that keeps what it is told to keep. */
async function startService(): Promise<Service> {
  const child = start('../src/main.js', { DATA_DIR: dataDir, PORT: '0', LOG_LEVEL: 'warn', MAX_ACTIVE_KEYS_PER_MECHA: '100' }, ['serve'])
  const found: Record<string, string> = {}
  for await (const line of createInterface({ input: child.stdout! })) {
    const [, name, value] = /^export (\w+)=(\S+)$/.exec(line) ?? []
    if (name) found[name] = value!
    if (found['GATEWAY_CREDENTIAL']) break
  }
  child.stdout!.resume()
  return { url: found['URL']!, operator: found['OPERATOR_TOKEN']!, gateway: found['GATEWAY_CREDENTIAL']! }
}

async function startCeiling(): Promise<string> {
  const child = start('ceiling.js', {})
  const [line] = (await once(createInterface({ input: child.stdout! }), 'line')) as [string]
  return line
}

function start(file: string, env: Record<string, string>, args: string[] = []): ChildProcess {
  const child = spawn(process.execPath, [join(PACKAGE_ROOT, 'dist', 'bench', file), ...args], {
    env: { PATH: process.env['PATH'], NODE_ENV: 'production', ...env },
    stdio: ['pipe', 'pipe', 'inherit'],
  })
  children.push(child)
  return child
}

async function issue(url: string, operator: string, mecha: string): Promise<string> {
  const headers = { authorization: `Bearer ${operator}`, 'content-type': 'application/json' }
  const response = await fetch(`${url}/v1/keys`, { method: 'POST', headers, body: JSON.stringify({ mecha }), signal: AbortSignal.timeout(10_000) })
  return ((await response.json()) as { plaintext_key: string }).plaintext_key
}

function median(numbers: number[]): number {
  const sorted = numbers.toSorted((a, b) => a - b)
  return sorted[Math.floor(sorted.length / 2)]!
}
