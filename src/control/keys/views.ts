/** Rows as the API shows them. */

import type { EventRow } from '../../db/tables.js'
import { publicId, type CredentialKind } from '../../credentials/id.js'
import { statusAt } from '../../credentials/status.js'
import type { EventBody, GatewayBodyOut, KeyBody } from '../schemas.js'
import type { Cursor, KeyOrder, KeyRecord } from '../store.js'

export function keyView(row: KeyRecord, now: Date): KeyBody {
  return {
    id: publicId('mecha', row.id),
    mecha: row.mecha!,
    org_id: row.org_id!,
    name: row.name,
    scopes: row.scopes,
    metadata: row.metadata,
    expires_at: text(row.expires_at),
    last_used_by: row.last_used_by && publicId('gateway', row.last_used_by),
    rotated_from: row.rotated_from && publicId('mecha', row.rotated_from),
    rotated_to: row.rotated_to && publicId('mecha', row.rotated_to),
    // Last: V8 adds fields to what was spread before them one by one, which takes eight times as long.
    ...shared(row, now),
  }
}

export function gatewayView(row: KeyRecord, now: Date): GatewayBodyOut {
  return { id: publicId('gateway', row.id), org_id: row.org_id!, name: row.name!, ...shared(row, now) }
}

/** An event of an organization, which is of a key or of a gateway credential. */
export function eventView(row: EventRow): EventBody {
  const { position, at, type, key_id, kind, mecha, actor, request_id, address, data } = row
  return { id: position, at: at.toISOString(), type: type as EventBody['type'], key_id: publicId(kind as CredentialKind, key_id!), mecha, actor, request_id, address, data }
}

/** A cursor as text: opaque to callers, and nothing in it that the page itself did not show. */
export function encodeCursor(row: KeyRecord, by: KeyOrder): string {
  return Buffer.from(`${row[by]!.getTime().toString(36)}.${row.id}${SUFFIX[by]}`).toString('base64url')
}

/** The place that a cursor names, or `undefined` when it is none of ours. */
export function decodeCursor(cursor: string): Cursor | undefined {
  const match = /^([0-9a-z]{1,10})\.([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})(\.expired)?$/.exec(Buffer.from(cursor, 'base64url').toString())
  return match ? { by: match[3] ? 'expires_at' : 'created_at', at: new Date(parseInt(match[1]!, 36)), id: match[2]! } : undefined
}

const SUFFIX: Record<KeyOrder, string> = { created_at: '', expires_at: '.expired' }

function shared(row: KeyRecord, now: Date) {
  const { created_by, revoked_by, revoke_reason } = row
  return {
    status: statusAt(row, now),
    created_at: row.created_at.toISOString(),
    created_by,
    first_used_at: text(row.first_used_at),
    last_used_at: text(row.last_used_at),
    last_refused_at: text(row.last_refused_at),
    last_refused_code: row.last_refused_code,
    revoked_at: text(row.revoked_at),
    revoked_by,
    revoke_reason,
  }
}

function text(time: Date | null): string | null {
  return time && time.toISOString()
}
