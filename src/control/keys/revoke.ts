/** Revoking one key or gateway credential: final, and recorded in the audit trail. */

import { notFound } from '../../errors.js'
import type { CredentialKind } from '../../credentials/id.js'
import type { Caller, ControlDeps, GatewayCaller } from '../deps.js'
import { findKey, revokeKey, type KeyRecord } from './store.js'

/**
 * Revokes a key or a gateway credential. A second revocation changes nothing: the first one's time and reason stay.
 *
 * @throws Problem `not_found`
 */
export async function revoke(
  { db }: ControlDeps,
  caller: Caller | GatewayCaller,
  kind: CredentialKind,
  id: string,
  reason?: string,
): Promise<{ key: KeyRecord; now: Date }> {
  const { actor, requestId, address } = caller
  if (!(await revokeKey(db, caller, kind, id, { actor, reason: reason ?? null, requestId, address }))) throw notFound()
  // A revoked key does not change any more, so it can be read after the transaction.
  const found = await findKey(db, caller, kind, id)
  if (!found) throw notFound()
  return { key: found, now: found.revoked_at! }
}
