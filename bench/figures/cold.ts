/** What has to be looked up and proved, how large the table may get, and what happens when too much of it is wanted. */

import type { AloneOrder } from '../alone.js'
import type { Order } from '../load.js'
import { compare, once, type Figure, type Plan, type Result } from '../pairs.js'
import { ask, generateLoad, rssOf } from '../processes.js'
import { fillTable, seedKeys } from '../seed.js'
import type { BenchDatabase, Service, World } from '../world.js'

/** Twenty times what the service is allowed to hold: taken in turn, none is ever found in memory. */
const COLD_KEYS = 2000
const COLD = { CACHE_MAX_KEYS: '100' }
const COLD_MECHA = 'cold^bench'
const SMALL_TABLE = 1000
const LISTED = 'filler0^bench'

export function coldFigures(world: World): Figure[] {
  const cold = once(async () => {
    const database = await world.database('cold')
    return { database, keys: await seedKeys(database, world, COLD_MECHA, COLD_KEYS) }
  })
  const table = (rows: number) => tableOf(world, rows)
  const small = once(() => table(SMALL_TABLE))
  const large = once((plan: Plan) => table(plan.keys))
  return [
    { name: 'cold verify ÷ the lower of argon2 alone and lookups alone', goal: { least: 0.6 }, measure: async (plan) => measureCold(world, plan, await cold()) },
    { name: 'verify p99, large table ÷ small', goal: { most: 1.2 }, measure: async (plan) => measureTables(world, plan, await small(), await large(plan), (one, service) => verifyOrder(service, one.keys, plan)) },
    { name: 'list p99, large table ÷ small', goal: { most: 1.5 }, measure: async (plan) => measureTables(world, plan, await small(), await large(plan), (_one, service) => listOrder(service, plan)) },
    { name: 'memory per cached key, bytes', goal: { most: 1024 }, measure: async (plan) => weigh(plan, await large(plan)) },
    { name: 'goodput at 4× overload ÷ maximum', goal: { least: 0.8 }, measure: async (plan) => measureOverload(world, plan, await cold()) },
  ]
}

interface Keys {
  readonly database: BenchDatabase
  readonly keys: string[]
}

async function measureCold(world: World, plan: Plan, { database, keys }: Keys): Promise<Result> {
  return withService(world, database, COLD, async (service) => {
    const order = verifyOrder(service, keys, plan)
    const alone = (part: AloneOrder['part']) => ask<{ rate: number }>('dist/bench/alone.js', { part, seconds: plan.seconds, callers: plan.connections, url: database.urls.runtime, mecha: COLD_MECHA } satisfies AloneOrder)
    return compare(plan, async () => ({ service_per_s: (await generateLoad(order)).rate }), async () => {
      const argon2 = (await alone('argon2')).rate
      const lookups = (await alone('lookups')).rate
      return { lower_per_s: Math.min(argon2, lookups), argon2_per_s: argon2, lookups_per_s: lookups }
    })
  })
}

/** A table of so many rows, among them the real keys and 50 for each of many Mechas. */
async function tableOf(world: World, rows: number): Promise<Keys> {
  const database = await world.database(`table_of_${rows}`)
  const real = SMALL_TABLE / 2
  const keys = await seedKeys(database, world, COLD_MECHA, real)
  await fillTable(database, world, rows - real)
  return { database, keys }
}

/** The p99 of the same load on both tables: few connections, so that it is the service's time and not that of a queue. */
async function measureTables(world: World, plan: Plan, small: Keys, large: Keys, orderOf: (one: Keys, service: Service) => Order): Promise<Result> {
  return withService(world, small.database, COLD, (onSmall) =>
    withService(world, large.database, COLD, (onLarge) => {
      const side = (name: string, order: Order) => async () => {
        const { p99, p50, rate } = await generateLoad({ ...order, connections: 4 })
        return { [`${name}_p99_ms`]: p99, [`${name}_p50_ms`]: p50, [`${name}_per_s`]: rate }
      }
      return compare(plan, side('large', orderOf(large, onLarge)), side('small', orderOf(small, onSmall)))
    }),
  )
}

async function weigh({ keys }: Plan, { database }: Keys): Promise<Result> {
  const count = Math.min(100_000, keys)
  const { bytes } = await ask<{ bytes: number }>('dist/bench/memory.js', { url: database.urls.runtime, count })
  return { value: bytes, of: { cached_keys: count } }
}

/** Cold verifies, of which a service does the fewest: at four times its maximum, and what is left of it right after. */
async function measureOverload(world: World, plan: Plan, { database, keys }: Keys): Promise<Result> {
  return withService(world, database, COLD, async (service) => {
    const order = verifyOrder(service, keys, plan)
    const maximum = (await generateLoad(order)).rate
    const calm = { ...order, connections: 1, seconds: 1 }
    const before = { p50: (await generateLoad(calm)).p50, rss: rssOf(service.pid) }
    const result = await compare(
      plan,
      async () => {
        const over = await generateLoad({ ...order, connections: 1500, rate: 4 * maximum }, { mayShed: true })
        return { goodput_per_s: over.rate, shed_per_s: over.shed, admitted_p99_ms: over.p99 }
      },
      async () => ({ maximum_per_s: (await generateLoad(order)).rate }),
    )
    await generateLoad({ ...order, connections: 1500, rate: 4 * maximum }, { mayShed: true })
    const after = await generateLoad(calm)
    return { ...result, of: { ...result.of, rss_before_mib: before.rss, rss_after_mib: rssOf(service.pid), calm_p50_before_ms: before.p50, calm_p50_after_ms: after.p50 } }
  })
}

function verifyOrder(service: Service, keys: readonly string[], { connections, seconds }: Plan): Order {
  return { url: `${service.url}/v1/verify`, method: 'POST', headers: service.gateway, bodies: keys.map((key) => JSON.stringify({ key })), connections, seconds }
}

function listOrder(service: Service, { connections, seconds }: Plan): Order {
  const { authorization } = service.operator
  return { url: `${service.url}/v1/keys?mecha=${encodeURIComponent(LISTED)}&limit=50`, method: 'GET', headers: { authorization: authorization! }, connections, seconds }
}

async function withService(world: World, database: BenchDatabase, settings: Record<string, string>, run: (service: Service) => Promise<Result>): Promise<Result> {
  const service = await world.service(database, settings)
  return run(service).finally(() => service.stop())
}
