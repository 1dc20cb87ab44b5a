/** Creating a gateway credential. It is made and stored like a key, with another prefix, and is hashed for its organization in place of a Mecha. */

import { inTransaction } from '../../db/transaction.js'
import { gatewaySubject } from '../../credentials/hash.js'
import { newId } from '../../credentials/id.js'
import { recordEvents } from '../audit/events.js'
import { readClock } from '../database-clock.js'
import type { ControlDeps, GatewayCaller } from '../deps.js'
import { mint } from '../keys/mint.js'
import type { Revealed } from '../keys/new-key.js'
import { insertKey } from '../keys/store.js'

/**
 * Creates the credential of a gateway, and reveals it.
 *
 * @param caller its organization is the one whose keys the gateway may verify; `null` is every organization
 */
export async function createGateway(deps: ControlDeps, caller: GatewayCaller, name: string): Promise<Revealed> {
  const { orgId, actor } = caller
  const minted = await mint(deps, 'gateway', newId(), gatewaySubject(orgId))
  const { id, hash, tag_root, pepper_root, plaintext } = minted
  return inTransaction(deps.db, async (trx) => {
    const now = await readClock(trx)
    const key = await insertKey(trx, {
      id, kind: 'gateway', org_id: orgId, mecha: null, name, scopes: [], metadata: '{}', hash, tag_root, pepper_root,
      created_at: now, created_by: actor, expires_at: null, rotated_from: null,
    })
    await recordEvents(trx, caller, now, [{ type: 'gateway.created', keyId: id, mecha: null, data: { name } }])
    return { key, plaintext, now }
  })
}
