/** What changes keys: issuing one, and how soon a revocation counts elsewhere. */

import { once } from 'node:events'
import { Agent, request } from 'node:http'
import { Client } from 'pg'
import type { AloneOrder } from '../alone.js'
import { familyCpu, findPostmaster, processCpu, threadCpu } from '../cpu.js'
import { compare, percentile, type Figure, type Plan, type Result } from '../pairs.js'
import { ask, generateLoad } from '../processes.js'
import type { Service, World } from '../world.js'

export function writeFigures(world: World): Figure[] {
  return [
    { name: 'issue ÷ argon2 and bare inserts alone', goal: { least: 1 }, measure: (plan) => measureIssue(world, plan) },
    { name: 'revoked → refused on another replica, p99 in ms', goal: { most: 100 }, measure: (plan) => measureRevocation(world, plan) },
  ]
}

/** Issued for this many organizations in turn: those of one and the same commit one after another (decision 7). */
const ORGANIZATIONS = 32

async function measureIssue(world: World, plan: Plan): Promise<Result> {
  const database = await world.database('writes')
  const service = await world.service(database)
  const { connections, seconds } = plan
  const client = new Client({ connectionString: database.urls.owner })
  await client.connect()
  try {
    const postmaster = await findPostmaster(client)
    const order = { url: `${service.url}/v1/keys`, method: 'POST' as const, headers: service.operator, bodies: ['{"mecha":"m{n}^bench"}'], connections, seconds }
    const authorizations = await service.operatorsOf(ORGANIZATIONS)
    const cpu = () => ({ thread: threadCpu(service.pid), service: processCpu(service.pid), postgres: familyCpu(postmaster) })
    return await compare(
      plan,
      async () => {
        const before = cpu()
        const { rate } = await generateLoad({ ...order, authorizations })
        const after = cpu()
        const each = (part: keyof typeof before) => ((after[part] - before[part]) * 1000) / (rate * seconds)
        const costs = { thread_us: each('thread'), service_us: each('service'), postgres_us: each('postgres') }
        return { service_per_s: rate, ...costs, of_one_organization_per_s: (await generateLoad(order)).rate }
      },
      async () => {
        const before = familyCpu(postmaster)
        const { rate, cpu_us } = await ask<{ rate: number; cpu_us: number }>('dist/bench/alone.js', { part: 'inserts', seconds, callers: connections, url: database.urls.owner } satisfies AloneOrder)
        return { alone_per_s: rate, alone_us: cpu_us, alone_postgres_us: ((familyCpu(postmaster) - before) * 1000) / (rate * seconds) }
      },
    )
  } finally {
    await client.end()
    await service.stop()
  }
}

/** Revocations of each pair. */
const REVOCATIONS = 40

/**
 * Keys are revoked on one replica while another one, under half the load that it can take, is asked about them without
 * a pause. The time counts from before the revocation is sent, so that it is no shorter than from its commit.
 */
async function measureRevocation(world: World, plan: Plan): Promise<Result> {
  // One of its own: keys of bare inserts need a root secret that no service has, and none would be ready beside them.
  const database = await world.database('revocations')
  const [near, far] = [await world.service(database), await world.service(database)]
  try {
    const { plaintext_key } = await near.call('POST', '/v1/keys', { mecha: 'load^bench' })
    const load = { url: `${far.url}/v1/verify`, method: 'POST' as const, headers: far.gateway, bodies: [JSON.stringify({ key: plaintext_key })], connections: plan.connections }
    const { rate: maximum } = await generateLoad({ ...load, seconds: plan.seconds })
    const count = REVOCATIONS * plan.pairs
    const keys = []
    for (let i = 0; i < count; i++) keys.push(await near.call('POST', '/v1/keys', { mecha: `revoked${Math.floor(i / 50)}^bench` }))
    const half = new AbortController()
    const loading = keepLoading(half.signal, () => generateLoad({ ...load, seconds: plan.seconds, rate: maximum / 2 }))
    const times: number[] = []
    let acceptedAfterReceipt = 0
    for (const { key, plaintext_key: plaintext } of keys) {
      const outcome = await revokeAndWatch(near, far, key.id, plaintext)
      times.push(outcome.ms)
      acceptedAfterReceipt += outcome.acceptedAfterReceipt
    }
    half.abort()
    const rates = await loading
    if (acceptedAfterReceipt > 0) throw new Error(`${acceptedAfterReceipt} verifies were accepted after the receipt said that all replicas had applied the revocation`)
    return {
      value: percentile(times, 0.99),
      range: [Math.min(...times), Math.max(...times)],
      of: { revocations: count, p50_ms: percentile(times, 0.5), accepted_after_receipt: 0, load_per_s: rates.reduce((sum, rate) => sum + rate, 0) / rates.length, maximum_per_s: maximum },
    }
  } finally {
    await near.stop()
    await far.stop()
  }
}

async function keepLoading(signal: AbortSignal, load: () => Promise<{ rate: number }>): Promise<number[]> {
  const rates = []
  while (!signal.aborted) rates.push((await load()).rate)
  return rates
}

async function revokeAndWatch(near: Service, far: Service, id: string, key: string): Promise<{ ms: number; acceptedAfterReceipt: number }> {
  const agent = new Agent({ keepAlive: true, maxSockets: 1 })
  try {
    if (!(await isValid(agent, far, key))) throw new Error('the key is not valid before it is revoked')
    const start = performance.now()
    const revoked = near.call('POST', `/v1/keys/${id}/revoke`, {}, { prefer: 'wait=10' })
    while (await isValid(agent, far, key));
    const ms = performance.now() - start
    const { propagation } = (await revoked) as { propagation: { replicas: number; complete: boolean } }
    if (propagation.replicas < 2 || !propagation.complete) throw new Error(`the receipt says ${JSON.stringify(propagation)}`)
    let acceptedAfterReceipt = 0
    for (let i = 0; i < 5; i++) if (await isValid(agent, far, key)) acceptedAfterReceipt++
    return { ms, acceptedAfterReceipt }
  } finally {
    agent.destroy()
  }
}

/** Over one connection and with as little of our own as there can be: the time that it takes counts. */
async function isValid(agent: Agent, { url, gateway }: Service, key: string): Promise<boolean> {
  const sent = request(`${url}/v1/verify`, { method: 'POST', agent, headers: gateway, timeout: 10_000 }).end(JSON.stringify({ key }))
  const [response] = (await once(sent, 'response')) as [AsyncIterable<Buffer>]
  let text = ''
  for await (const chunk of response) text += chunk.toString()
  return (JSON.parse(text) as { valid: boolean }).valid
}
