/**
 * `npm run bench`: what the service does in a second, beside the ceiling (`ceiling.ts`) in the same run.
 * Options: `--seconds N` for each measurement, `--pairs N`, `--connections N`.
 */

import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { availableParallelism, tmpdir } from 'node:os'
import { join } from 'node:path'
import { parseArgs } from 'node:util'
import { PACKAGE_ROOT } from '../src/package-root.js'
import { prepareCases } from './cases.js'
import { measure, type Plan, type Row } from './pairs.js'
import { startCeiling, startService, stopAll } from './sides.js'

const plan = planOf(process.argv.slice(2))
const dataDir = mkdtempSync(join(tmpdir(), 'mecha-keys-bench-'))
try {
  const service = await startService(dataDir)
  const sides = { service: service.url, ceiling: await startCeiling() }
  const rows: Row[] = []
  for (const one of await prepareCases(service)) {
    process.stdout.write(`${one.name} …\n`)
    rows.push(await measure(one, sides, plan))
  }
  report(rows)
} finally {
  await stopAll()
  rmSync(dataDir, { recursive: true, force: true })
}

function planOf(args: string[]): Plan {
  const { values } = parseArgs({
    args,
    options: { seconds: { type: 'string', default: '5' }, pairs: { type: 'string', default: '5' }, connections: { type: 'string', default: '32' } },
  })
  const positive = (name: keyof Plan) => {
    if (!/^[1-9]\d{0,3}$/.test(values[name])) throw new Error(`--${name} must be a whole number from 1 to 9999`)
    return Number(values[name])
  }
  return { seconds: positive('seconds'), pairs: positive('pairs'), connections: positive('connections') }
}

function report(rows: Row[]): void {
  const { pairs, seconds, connections } = plan
  const table = rows.map(({ name, service, ceiling, ratio, ratios: [least, most], p99 }) => [
    name,
    {
      'service, /s': Math.round(service), 'ceiling, /s': Math.round(ceiling),
      'service ÷ ceiling': ratio.toFixed(3), 'least to most': `${least.toFixed(3)} to ${most.toFixed(3)}`, 'p99, ms': Math.round(p99),
    },
  ])
  process.stdout.write(`\nMedians of ${pairs} pairs, ${seconds} s each, ${connections} connections, ${availableParallelism()} cores, Node.js ${process.version}\n`)
  console.table(Object.fromEntries(table))
  const folder = join(PACKAGE_ROOT, 'bench', 'results')
  mkdirSync(folder, { recursive: true })
  writeFileSync(join(folder, 'latest.json'), `${JSON.stringify({ ...plan, cores: availableParallelism(), node: process.version, rows }, null, 2)}\n`)
}
