/** What the service's own metrics say. */

import type { Service } from './service.js'

/** Statements of the runtime plane and argon2 computations so far. The control plane counts keys when it is asked for metrics. */
export async function costs(service: Service): Promise<{ queries: number; argon2: number }> {
  const { text } = await service.call('GET', '/metrics')
  const sum = (name: string, labels = '[^}]*') => [...text.matchAll(new RegExp(`^${name}(?:\\{${labels}\\})? (\\S+)$`, 'gm'))].reduce((total, match) => total + Number(match[1]), 0)
  return { queries: sum('mecha_keys_database_queries_total', 'plane="runtime"'), argon2: sum('mecha_keys_argon2_seconds_count') }
}
