/** How keys had ended by the audit trail, and what that changes of a key as the back-up has it. Pure. */

import type { Metadata } from '../../db/tables.js'
import { parsePublicId, type CredentialKind } from '../../credentials/id.js'
import type { TrailEvent } from '../audit/follow.js'
import type { EndedLife, Life } from './store.js'

/** What the trail says since the back-up of how a key ends. */
export interface RecordedEnd {
  readonly kind: CredentialKind
  enabled?: boolean
  expires_at?: Date | null
  revoked?: Pick<EndedLife, 'revoked_at' | 'revoked_by' | 'revoke_reason'>
}

const SECRET_REPLACED = 'the secret was replaced after the back-up'

/** Adds what one event says to what is recorded of its key, and to the signing keys that were given up as compromised. */
export function recordEnd({ type, key_id, at, actor, data }: TrailEvent, recorded: Map<string, RecordedEnd>, compromised: string[]): void {
  if (type === 'signing_key.created' && Array.isArray(data['compromised'])) compromised.push(...(data['compromised'] as string[]))
  const kind = key_id?.startsWith('gw_') ? 'gateway' : 'mecha'
  const id = key_id && parsePublicId(kind, key_id)
  if (!id) return
  const key = recorded.get(id) ?? { kind }
  recorded.set(id, key)
  const changes = (data['changes'] ?? {}) as Record<string, { readonly to: Metadata[string] } | undefined>
  switch (type) {
    case 'key.updated':
      if (changes['enabled']) key.enabled = changes['enabled'].to === true
      if (changes['expires_at']) key.expires_at = dateOf(changes['expires_at'].to)
      break
    case 'key.rotated':
      key.expires_at = dateOf(data['ends_at'] ?? null)
      // As the rotation had it: an end that is not in the future is more than a time, which a clock that goes back would undo.
      if (key.expires_at && key.expires_at <= new Date(at)) key.enabled = false
      break
    case 'key.revoked':
    case 'gateway.revoked':
      key.revoked ??= { revoked_at: new Date(at), revoked_by: actor, revoke_reason: typeof data['reason'] === 'string' ? data['reason'] : null }
      break
    // The back-up has the secret from before, which must not come alive, and nobody has the hash of the one after.
    case 'key.secret_replaced':
      key.revoked ??= { revoked_at: new Date(at), revoked_by: 'restore', revoke_reason: SECRET_REPLACED }
      break
  }
}

/** How a key has to end; `undefined` where it has ended as much already. */
export function endOf(life: Life, { revoked, enabled, expires_at }: RecordedEnd): EndedLife | undefined {
  if (life.revoked_at) return undefined
  const kept = { id: life.id, enabled: life.enabled, expires_at: life.expires_at, revoked_at: null, revoked_by: null, revoke_reason: null }
  if (revoked) return { ...kept, ...revoked }
  const isShortened = expires_at && (!life.expires_at || expires_at < life.expires_at)
  const isDisabled = enabled === false && life.enabled
  if (!isShortened && !isDisabled) return undefined
  return { ...kept, enabled: life.enabled && !isDisabled, expires_at: isShortened ? expires_at : life.expires_at }
}

/** The audit event of an end, and what it counts as. */
export function describeEnd(life: Life, end: EndedLife) {
  if (end.revoked_at) {
    const data = { reason: end.revoke_reason, revoked_at: end.revoked_at, revoked_by: end.revoked_by }
    return { was: ['revoked'] as const, type: life.kind === 'mecha' ? 'key.revoked' : 'gateway.revoked', data }
  }
  const isShortened = end.expires_at?.getTime() !== life.expires_at?.getTime()
  const isDisabled = end.enabled !== life.enabled
  const changes = {
    ...(isShortened && { expires_at: { from: life.expires_at, to: end.expires_at } }),
    ...(isDisabled && { enabled: { from: life.enabled, to: end.enabled } }),
  }
  const was = [...(isShortened ? (['shortened'] as const) : []), ...(isDisabled ? (['disabled'] as const) : [])]
  return { was, type: 'key.updated', data: { changes } }
}

function dateOf(value: Metadata[string]): Date | null {
  return typeof value === 'string' ? new Date(value) : null
}
