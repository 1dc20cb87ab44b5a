/** `npm run soak -- --minutes 5 [--seed N] [--only fault,…]`. Exits with 1 when anything happened that must not. */

import { randomInt } from 'node:crypto'
import { parseArgs } from 'node:util'
import { FAULT_NAMES, type FaultName } from './faults.js'
import { soak } from './soak.js'

const { values } = parseArgs({
  options: { minutes: { type: 'string', default: '5' }, seed: { type: 'string', default: String(randomInt(1e9)) }, only: { type: 'string' } },
})
const minutes = Number(values.minutes)
if (!(minutes > 0 && minutes <= 1440)) throw new Error('--minutes must be a number above 0 and at most 1440')
if (!/^\d{1,9}$/.test(values.seed)) throw new Error('--seed must be a whole number of at most nine digits')
const only = values.only?.split(',') as FaultName[] | undefined
for (const name of only ?? []) if (!FAULT_NAMES.includes(name)) throw new Error(`--only takes some of ${FAULT_NAMES.join()}`)

const say = (line: string) => process.stdout.write(`${line}\n`)
say(`soak: ${minutes} minutes, --seed ${values.seed}${only ? `, --only ${only.join()}` : ''}`)
const { counts, complaints, isClean } = await soak({ seconds: minutes * 60, seed: Number(values.seed), only, say })
console.table(counts)
for (const complaint of complaints) say(`✗ ${complaint}`)
say(isClean ? '✓ nothing lost, nothing accepted after the bound or a receipt, nothing refused though valid, no 500' : '✗ the service broke its word')
process.exit(isClean ? 0 : 1)
