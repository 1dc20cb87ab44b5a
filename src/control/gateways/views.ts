/** Gateway credentials as the API shows them. */

import { publicId } from '../../credentials/id.js'
import type { KeyRecord } from '../keys/store.js'
import { credentialView } from '../keys/views.js'
import type { GatewayBodyOut } from './schemas.js'

export function gatewayView(row: KeyRecord, now: Date): GatewayBodyOut {
  return { id: publicId('gateway', row.id), org_id: row.org_id!, name: row.name!, ...credentialView(row, now) }
}
