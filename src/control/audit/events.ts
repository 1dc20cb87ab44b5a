/** Recording audit events of keys and gateway credentials. */

import type { Transaction } from 'kysely'
import type { Database, Metadata } from '../../db/tables.js'
import type { Author } from '../deps.js'
import { insertEvents } from './store.js'

export const EVENT_TYPES = [
  'key.issued', 'key.updated', 'key.rotated', 'key.revoked', 'key.secret_replaced', 'gateway.created', 'gateway.revoked',
] as const

export interface AuditEvent {
  readonly type: (typeof EVENT_TYPES)[number]
  readonly keyId: string
  readonly mecha: string | null
  readonly data?: Metadata
}

/** Writes audit events. They have to be the last thing that a transaction writes: see {@link insertEvents}. */
export async function recordEvents(trx: Transaction<Database>, caller: Author & { readonly orgId: string | null }, at: Date, events: readonly AuditEvent[]): Promise<void> {
  const { orgId, actor, requestId, address } = caller
  const rows = events.map(({ type, keyId, mecha, data = {} }) => ({
    at, type, key_id: keyId, kind: type.startsWith('key.') ? ('mecha' as const) : ('gateway' as const),
    mecha, actor, request_id: requestId, address, data,
  }))
  await insertEvents(trx, orgId, rows)
}
