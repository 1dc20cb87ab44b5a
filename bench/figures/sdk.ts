/** What a gateway saves that verifies with the SDK. */

import type { GatewayOrder } from '../gateway.js'
import { compare, type Figure, type Plan, type Result } from '../pairs.js'
import { ask, generateLoad } from '../processes.js'
import type { World } from '../world.js'

export function sdkFigures(world: World): Figure[] {
  return [{ name: 'SDK verify in process ÷ hot verify', goal: { least: 20 }, measure: (plan) => measureSdk(world, plan) }]
}

/** The SDK's are verified in turn: one key alone would be found where it was just left. */
const KEYS = 100

async function measureSdk(world: World, { connections, seconds, ...plan }: Plan): Promise<Result> {
  const service = await world.service(await world.database('sdk'), { USAGE_FLUSH_INTERVAL: '1h' })
  try {
    const keys: string[] = []
    while (keys.length < KEYS) keys.push((await service.call('POST', '/v1/keys', { mecha: `sdk${keys.length}^bench` })).plaintext_key as string)
    const order: GatewayOrder = { url: service.url, credential: service.gateway['authorization']!.replace('Bearer ', ''), keys, seconds }
    const load = { url: `${service.url}/v1/verify`, method: 'POST' as const, headers: service.gateway, bodies: keys.map((key) => JSON.stringify({ key })), connections, seconds }
    return await compare(
      { ...plan, connections, seconds },
      async () => {
        const { rate, asked } = await ask<{ rate: number; asked: number }>('dist/bench/gateway.js', order)
        if (asked > 0) throw new Error(`${asked} keys that were held were asked about`)
        return { sdk_per_s: rate }
      },
      async () => ({ service_per_s: (await generateLoad(load)).rate }),
    )
  } finally {
    await service.stop()
  }
}
