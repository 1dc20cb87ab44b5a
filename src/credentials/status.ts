/** The life of a key as a function of its row and an instant. Nothing needs to run for a key to expire. */

import { unmetRequirement, type RefusalCode, type Requirements } from '../protocol/verdict.js'

export type KeyStatus = 'active' | 'disabled' | 'expired' | 'revoked'

/** What of a key decides its status. Times are dates, or milliseconds. */
export interface Life {
  readonly revoked_at: Date | number | null
  readonly expires_at: Date | number | null
  readonly enabled: boolean
}

/** Revoked wins over expired, expired over disabled. A key is expired from `expires_at` on, not after it. */
export function statusAt(life: Life, now: Date | number): KeyStatus {
  if (life.revoked_at !== null) return 'revoked'
  if (life.expires_at !== null && Number(life.expires_at) <= Number(now)) return 'expired'
  return life.enabled ? 'active' : 'disabled'
}

/** Why an authenticated key is refused at `now`, or `undefined` when it is valid. */
export function refusalAt(
  key: Life & { readonly mecha: string | null; readonly scopes: readonly string[] },
  now: Date | number,
  requirements: Requirements,
): RefusalCode | undefined {
  const status = statusAt(key, now)
  return status === 'active' ? unmetRequirement(requirements, key.mecha, key.scopes) : status
}

/** Why a key cannot be rotated now, or `undefined` when it can. */
export function rotationRefusal(
  life: Life & { readonly rotated_to: string | null },
  now: Date,
): 'key_revoked' | 'key_already_rotated' | 'key_expired' | 'key_disabled' | undefined {
  const status = statusAt(life, now)
  if (status === 'revoked') return 'key_revoked'
  if (life.rotated_to) return 'key_already_rotated'
  if (status === 'expired') return 'key_expired'
  if (status === 'disabled') return 'key_disabled'
  return undefined
}
