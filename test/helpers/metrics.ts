/** What the service's own metrics say. */

import type { Service } from './service.js'

/** Statements and argon2 computations so far. */
export async function costs(service: Service): Promise<{ queries: number; argon2: number }> {
  const { text } = await service.call('GET', '/metrics')
  const sum = (name: string) => [...text.matchAll(new RegExp(`^${name}(?:\\{[^}]*\\})? (\\S+)$`, 'gm'))].reduce((total, match) => total + Number(match[1]), 0)
  return { queries: sum('mecha_keys_database_queries_total'), argon2: sum('mecha_keys_argon2_seconds_count') }
}
