/** Keys as the API shows them. */

import { publicId } from '../../credentials/id.js'
import { statusAt } from '../../credentials/status.js'
import type { Revealed } from './new-key.js'
import type { KeyBody } from './schemas.js'
import type { KeyRecord } from './store.js'

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
    ...credentialView(row, now),
  }
}

/** The answer that reveals a key: the only one that has a plaintext. */
export function revealView({ key, plaintext, now }: Revealed) {
  return { key: keyView(key, now), plaintext_key: plaintext }
}

/** What keys and gateway credentials have in common. */
export function credentialView(row: KeyRecord, now: Date) {
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
