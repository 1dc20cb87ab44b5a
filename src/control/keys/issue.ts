/** Issuing a key: the request, the secret, the row, and the plaintext that is revealed once. */

import { notFound } from '../../errors.js'
import { parseHandle } from '../../credentials/handle.js'
import { newId } from '../../credentials/id.js'
import type { Caller, ControlDeps } from '../deps.js'
import { termOfNew, type ExpiryRequest } from './expiry.js'
import { revealAgain, slotOf } from './idempotency.js'
import { insertIssue } from './issue-store.js'
import { mint } from './mint.js'
import { ATTEMPTS, contended, newKey, refusalOf, reveal, type KeyDetails, type Revealed } from './new-key.js'

export interface IssueRequest extends KeyDetails, ExpiryRequest {
  readonly mecha: string
}

/**
 * Issues a key for a Mecha. A Mecha that no organization has becomes the caller's, if the caller's organization may take it (`CREWS`).
 *
 * @param idempotencyKey a repeat with the same one makes no second key: see `idempotency.ts`
 * @throws Problem `not_found` (another organization's Mecha, or another crew's), `key_limit_reached`, `invalid_request`
 */
export async function issueKey(deps: ControlDeps, caller: Caller, request: IssueRequest, idempotencyKey?: string): Promise<Revealed> {
  const { config, db } = deps
  const { mecha } = request
  const { crew } = parseHandle(mecha)
  if (caller.crews && !caller.crews.includes(crew)) throw notFound()
  // If the token names crews, it names this one, and so its issuer says that the crew is the organization's.
  const isClaimed = caller.crews !== undefined || config.CREWS === 'open'
  const limit = config.MAX_ACTIVE_KEYS_PER_MECHA
  const term = termOfNew(request, config)
  const slot = slotOf(deps, caller, idempotencyKey, { act: 'issue', request })
  const minted = await mint(deps, 'mecha', newId(), mecha)
  const key = { is_claimed: isClaimed, most_keys: limit, ...newKey(deps, caller, mecha, minted, request, term) }
  for (let attempt = 0; attempt < ATTEMPTS; attempt++) {
    const issued = await insertIssue(db, key, slot)
    if ('key' in issued) return reveal(issued.key, minted)
    if (!('before' in issued)) throw refusalOf(issued, term, config, limit)
    if (issued.before) return revealAgain(deps, caller, mecha, issued.before, slot!)
  }
  throw contended()
}
