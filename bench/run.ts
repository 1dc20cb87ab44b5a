/**
 * `npm run bench`: the figures of docs/performance.md. Options: `--seconds N` for each measurement, `--pairs N`,
 * `--connections N`, `--keys N` for the large table, `--only TEXT` for the figures whose names hold it; `--only scale` for what large
 * tables cost (`bench/scale.ts`), which ends with 1 where it is more than it may be; `--only hash` for what hashes cost (`bench/hash.ts`);
 * `--only feeds` and `--only streams` for what it costs to follow changes (`bench/feeds.ts`, `bench/streams.ts`); `--only capacity` for the parts
 * that docs/scaling.md adds up (`bench/capacity.ts`).
 */

import { mkdirSync, writeFileSync } from 'node:fs'
import { availableParallelism, cpus } from 'node:os'
import { join } from 'node:path'
import { parseArgs } from 'node:util'
import { PACKAGE_ROOT } from '../src/package-root.js'
import { coldFigures } from './figures/cold.js'
import { hotFigures } from './figures/hot.js'
import { sdkFigures } from './figures/sdk.js'
import { startFigures } from './figures/start.js'
import { writeFigures } from './figures/writes.js'
import { measureCapacity } from './capacity.js'
import { measureFeeds } from './feeds.js'
import { measureHash } from './hash.js'
import type { Figure, Plan, Result } from './pairs.js'
import { measureScale } from './scale.js'
import { measureStreams } from './streams.js'
import { createWorld } from './world.js'

type Row = Result & Pick<Figure, 'name' | 'goal'>

const { plan, only } = readArguments(process.argv.slice(2))
if (only === 'capacity') process.exit((await measureCapacity(plan), 0))
if (only === 'feeds') process.exit((await measureFeeds(plan.seconds), 0))
if (only === 'hash') process.exit((await measureHash(plan.seconds), 0))
if (only === 'streams') process.exit((await measureStreams(plan.seconds), 0))
if (only === 'scale') process.exit((await measureScale(plan.keys)) ? 0 : 1)
const world = await createWorld()
try {
  const rows: Row[] = []
  for (const figure of [...hotFigures(world), ...sdkFigures(world), ...coldFigures(world), ...writeFigures(world), ...startFigures(world)]) {
    if (!figure.name.includes(only)) continue
    const row = { name: figure.name, goal: figure.goal, ...(await figure.measure(plan)) }
    rows.push(row)
    process.stdout.write(`${row.name}: ${round(row.value)} ${JSON.stringify(row.of, (_name, value: unknown) => (typeof value === 'number' ? round(value) : value))}\n`)
  }
  if (rows.length === 0) throw new Error(`no figure's name holds "${only}"`)
  report(rows)
} finally {
  await world.end()
}

function readArguments(args: string[]): { plan: Plan; only: string } {
  const defaults = { seconds: '2', pairs: '5', connections: '32', keys: '1000000' }
  const options = Object.fromEntries(Object.entries({ ...defaults, only: '' }).map(([name, value]) => [name, { type: 'string' as const, default: value }]))
  const { values } = parseArgs({ args, options })
  const positive = (name: keyof typeof defaults, least = 1) => {
    const value = String(values[name])
    if (!/^[1-9]\d{0,6}$/.test(value) || Number(value) < least) throw new Error(`--${name} must be a whole number from ${least} to 9999999`)
    return Number(value)
  }
  return { plan: { seconds: positive('seconds'), pairs: positive('pairs'), connections: positive('connections'), keys: positive('keys', 2000) }, only: String(values['only']) }
}

function report(rows: Row[]): void {
  const machine = { cores: availableParallelism(), processor: cpus()[0]?.model.trim() ?? 'unknown', node: process.version }
  const heading = `Medians of ${plan.pairs} pairs of ${plan.seconds} s, ${plan.connections} connections, ${plan.keys} keys in the large table, ${machine.cores} cores, Node.js ${machine.node}`
  process.stdout.write(`\n${heading}\n\n| Figure | Reach | Measured | Least to most | |\n|---|---|---|---|---|\n`)
  for (const { name, goal, value, range } of rows) {
    const cells = [name, 'least' in goal ? `≥ ${goal.least}` : `≤ ${goal.most}`, round(value), range ? `${round(range[0])} to ${round(range[1])}` : '', isReached(goal, value) ? '' : 'short']
    process.stdout.write(`| ${cells.join(' | ')} |\n`)
  }
  const folder = join(PACKAGE_ROOT, 'bench', 'results')
  mkdirSync(folder, { recursive: true })
  writeFileSync(join(folder, 'latest.json'), `${JSON.stringify({ ...plan, ...machine, figures: rows.map((row) => ({ ...row, reached: isReached(row.goal, row.value) })) }, null, 2)}\n`)
}

function isReached(goal: Figure['goal'], value: number): boolean {
  return 'least' in goal ? value >= goal.least : value <= goal.most
}

function round(value: number): number {
  return Number(value.toPrecision(3)) < 1000 ? Number(value.toPrecision(3)) : Math.round(value)
}
