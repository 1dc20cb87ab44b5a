/** What it takes to start, and to be there: the processor's time until `/readyz` says yes, and the memory of a service that nobody asks anything. */

import { setTimeout as sleep } from 'node:timers/promises'
import { processCpu } from '../cpu.js'
import { median, once, type Figure, type Plan, type Result } from '../pairs.js'
import { rssOf } from '../processes.js'
import type { World } from '../world.js'

export function startFigures(world: World): Figure[] {
  const starts = once((plan: Plan) => measureStarts(world, plan))
  return [
    { name: 'start: CPU until ready, ms', goal: { most: 600 }, measure: async (plan) => resultOf(await starts(plan), 'cpu_ms') },
    { name: 'start: memory of an idle service, MiB', goal: { most: 100 }, measure: async (plan) => resultOf(await starts(plan), 'idle_mib') },
  ]
}

interface Started {
  readonly cpu_ms: number
  readonly ready_mib: number
  readonly idle_mib: number
}

async function measureStarts(world: World, { pairs, seconds }: Plan): Promise<Started[]> {
  const database = await world.database('start')
  const started: Started[] = []
  // The first one makes a signing key, and fills Node.js's cache of compiled code where it has one.
  for (let i = 0; i <= pairs; i++) {
    const service = await world.service(database)
    const [cpu_ms, ready_mib] = [processCpu(service.pid), rssOf(service.pid)]
    await sleep(seconds * 1000)
    if (i > 0) started.push({ cpu_ms, ready_mib, idle_mib: rssOf(service.pid) })
    await service.stop()
  }
  return started
}

function resultOf(started: readonly Started[], of: keyof Started): Result {
  const values = started.map((one) => one[of])
  const medianOf = (name: keyof Started) => median(started.map((one) => one[name]))
  return { value: median(values), range: [Math.min(...values), Math.max(...values)], of: { cpu_ms: medianOf('cpu_ms'), ready_mib: medianOf('ready_mib'), idle_mib: medianOf('idle_mib') } }
}
