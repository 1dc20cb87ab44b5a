/** The messages of the service's stream of changes, as they are read. */

import { StreamLost } from './errors.js'

export interface Confirmation {
  readonly confirmed_ms: number
  /** In milliseconds since 1970. */
  readonly database_time: number
  readonly history: string | undefined
}

export function keyIdsIn(data: string): readonly string[] {
  const { key_ids: ids } = JSON.parse(data) as { key_ids: unknown }
  if (!Array.isArray(ids) || !ids.every((id) => typeof id === 'string')) throw notUnderstood()
  return ids
}

export function confirmationIn(data: string): Confirmation {
  const { confirmed_ms, database_time, history } = JSON.parse(data) as { confirmed_ms: unknown; database_time: unknown; history?: unknown }
  const time = Date.parse(String(database_time))
  if (typeof confirmed_ms !== 'number' || !Number.isFinite(confirmed_ms) || Number.isNaN(time)) throw notUnderstood()
  return { confirmed_ms, database_time: time, history: typeof history === 'string' ? history : undefined }
}

export function notUnderstood(cause?: unknown): StreamLost {
  return cause instanceof StreamLost ? cause : new StreamLost('not_understood', 'service_unavailable', 'the stream of changes holds what is not understood', { cause })
}
