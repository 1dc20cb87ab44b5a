/** Audit events as the API shows them. */

import type { EventRow } from '../../db/tables.js'
import { publicId, type CredentialKind } from '../../credentials/id.js'
import type { EventBody } from './schemas.js'

/** An event of an organization, which is of a key or of a gateway credential. */
export function eventView(row: EventRow): EventBody {
  const { position, at, type, key_id, kind, mecha, actor, request_id, address, data } = row
  return { id: position, at: at.toISOString(), type: type as EventBody['type'], key_id: publicId(kind as CredentialKind, key_id!), mecha, actor, request_id, address, data }
}
