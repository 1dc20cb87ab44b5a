/** Gateway credentials: the same machine as Mecha keys, with another prefix and an organization for a subject. */

import { inTransaction } from '../../db/transaction.js'
import { gatewaySubject } from '../../credentials/hash.js'
import { newId } from '../../credentials/id.js'
import type { Revealed } from '../keys/issue.js'
import { audit, mint, type ControlParts, type GatewayCaller } from '../deps.js'
import { insertKey, readClock } from '../store.js'

/**
 * Creates the credential of a gateway, and reveals it.
 *
 * @param caller its organization is the one whose keys the gateway may verify; `null` is every organization
 */
export async function createGateway(parts: ControlParts, caller: GatewayCaller, name: string): Promise<Revealed> {
  const { orgId, actor } = caller
  const minted = await mint(parts, 'gateway', newId(), gatewaySubject(orgId))
  const { id, hash, tag_root, pepper_root, plaintext } = minted
  return inTransaction(parts.db, async (trx) => {
    const now = await readClock(trx)
    const key = await insertKey(trx, {
      id, kind: 'gateway', org_id: orgId, mecha: null, name, scopes: [], metadata: '{}', hash, tag_root, pepper_root,
      created_at: now, created_by: actor, expires_at: null, rotated_from: null,
    })
    await audit(trx, caller, now, [{ type: 'gateway.created', keyId: id, mecha: null, data: { name } }])
    return { key, plaintext, now }
  })
}
