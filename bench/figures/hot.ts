/** What is answered from memory, or refused before anything is looked up. */

import { makeToken } from '../../src/credentials/token.js'
import { deriveRoot } from '../../src/credentials/roots.js'
import { newId } from '../../src/credentials/id.js'
import { processCpu } from '../cpu.js'
import type { Order } from '../load.js'
import { compare, type Figure, type Measurement, type Plan, type Result } from '../pairs.js'
import { generateLoad, report, start, stop } from '../processes.js'
import type { Service, World } from '../world.js'

export function hotFigures(world: World): Figure[] {
  return [
    { name: 'hot verify ÷ ceiling', goal: { least: 0.85 }, measure: (plan) => withHotKey(world, plan, (service, order) => besideCeiling(plan, service, order)) },
    { name: 'hot verify ÷ bare node:http', goal: { least: 0.85 }, measure: (plan) => withHotKey(world, plan, (service, order) => besideCeiling(plan, service, order, 'dist/bench/http-ceiling.js')) },
    { name: 'malformed key refused ÷ ceiling', goal: { least: 0.85 }, measure: (plan) => refused(world, plan, (key) => key.slice(0, -20) + (key.at(-20) === 'x' ? 'y' : 'x') + key.slice(-19), 'malformed') },
    { name: 'forged key refused ÷ ceiling', goal: { least: 0.85 }, measure: (plan) => refused(world, plan, () => makeToken('mecha', newId(), deriveRoot('the root secret of somebody else entirely')).text, 'unknown') },
    { name: 'authz ÷ verify', goal: { least: 0.95 }, measure: (plan) => withHotKey(world, plan, besideAuthz(plan)) },
    { name: 'hot verify ÷ better-auth', goal: { least: 30 }, measure: (plan) => withRival(world, plan, 'better-auth.mjs', (url) => ({ DATABASE_URL: url })) },
    { name: 'hot verify ÷ oidc-provider', goal: { least: 4 }, measure: (plan) => withRival(world, plan, 'oidc-provider.mjs', () => ({})) },
  ]
}

/** Runs with a service that knows one key, and the order that verifies it. */
async function withHotKey(world: World, { connections, seconds }: Plan, run: (service: Service, order: Order, key: string) => Promise<Result>): Promise<Result> {
  const service = await world.service(await world.database('hot'), { USAGE_FLUSH_INTERVAL: '1h' })
  try {
    const { plaintext_key } = await service.call('POST', '/v1/keys', { mecha: 'hot^bench' })
    await expectVerdict(service, plaintext_key, { valid: true })
    return await run(service, { url: `${service.url}/v1/verify`, method: 'POST', headers: service.gateway, bodies: [JSON.stringify({ key: plaintext_key })], connections, seconds }, plaintext_key)
  } finally {
    await service.stop()
  }
}

/** The same requests to the service and to a ceiling. */
async function besideCeiling(plan: Plan, { pid }: Service, order: Order, file = 'dist/bench/ceiling.js'): Promise<Result> {
  const child = start(file)
  try {
    const ceiling = { ...order, url: `${await report(child)}/v1/verify` }
    return await compare(plan, costOf('service', order, pid), costOf('ceiling', ceiling, child.pid!))
  } finally {
    await stop(child)
  }
}

/** The same key by both ways: in the headers of a proxy, and in the body of a gateway. */
function besideAuthz(plan: Plan): (service: Service, verify: Order, key: string) => Promise<Result> {
  return async (service, verify, key) => {
    const { bodies: _none, ...rest } = verify
    const authz: Order = { ...rest, url: `${service.url}/v1/authz`, method: 'GET', headers: { 'x-gateway-authorization': verify.headers['authorization']!, 'x-mecha-key': key } }
    return compare(plan, rateOf('authz_per_s', authz), rateOf('verify_per_s', verify))
  }
}

function refused(world: World, plan: Plan, spoil: (key: string) => string, code: string): Promise<Result> {
  return withHotKey(world, plan, async (service, order, key) => {
    const bad = spoil(key)
    await expectVerdict(service, bad, { valid: false, code })
    const work = async () => ({
      queries: await service.metric('mecha_keys_database_queries_total{plane="runtime"}'),
      argon2: await service.metric('mecha_keys_argon2_seconds_count'),
    })
    const bodies = [JSON.stringify({ key: bad })]
    const before = await work()
    const result = await besideCeiling(plan, service, { ...order, bodies })
    const after = await work()
    if (after.queries !== before.queries || after.argon2 !== before.argon2) throw new Error(`a ${code} key took ${after.queries - before.queries} queries and ${after.argon2 - before.argon2} computations of argon2`)
    return { ...result, of: { ...result.of, queries: 0, argon2: 0 } }
  })
}

async function withRival(world: World, plan: Plan, file: string, env: (url: string) => Record<string, string>): Promise<Result> {
  const { urls } = await world.database('rival')
  return withHotKey(world, plan, async (_service, order) => {
    const child = start(`bench/rivals/${file}`, [], env(urls.owner))
    try {
      const { url, body, headers = { 'content-type': 'application/json' } } = JSON.parse(await report(child)) as { url: string; body: string; headers?: Record<string, string> }
      return await compare(plan, rateOf('service_per_s', order), rateOf('rival_per_s', { ...order, url, headers, bodies: [body] }))
    } finally {
      await stop(child)
    }
  })
}

/** A key that is refused is answered with 200 too: that a figure measures what it says is seen here, once. */
async function expectVerdict(service: Service, key: string, expected: { valid: boolean; code?: string }): Promise<void> {
  const { valid, code } = await service.verify(key)
  if (valid !== expected.valid || code !== expected.code) throw new Error(`expected ${JSON.stringify(expected)}, and it was ${valid ? 'valid' : code}`)
}

/** The rate, and what a request takes of the process that answers, in microseconds of a core. */
function costOf(name: string, order: Order, pid: number): () => Promise<Measurement> {
  return async () => {
    const before = processCpu(pid)
    const { rate } = await generateLoad(order)
    return { [`${name}_per_s`]: rate, [`${name}_us`]: ((processCpu(pid) - before) * 1000) / (rate * order.seconds) }
  }
}

function rateOf(name: string, order: Order): () => Promise<Measurement> {
  return async () => ({ [name]: (await generateLoad(order)).rate })
}
