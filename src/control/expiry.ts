/** When a key ends: what was asked for, what the policy allows. Pure. */

import type { Settings } from '../config.js'
import { invalid } from '../errors.js'

export interface ExpiryRequest {
  /** Seconds from now. */
  readonly expires_in?: number | undefined
  /** RFC 3339; `null` asks for no end. */
  readonly expires_at?: string | null | undefined
}

type Policy = Pick<Settings, 'KEY_DEFAULT_TTL' | 'KEY_MAX_TTL'>

/**
 * The end of a new key.
 *
 * @param inherited life in seconds to take when the request names none; for a rotation, the old key's
 * @throws Problem `invalid_request` naming the field and the rule
 */
export function expiryOfNew(request: ExpiryRequest, now: Date, policy: Policy, inherited?: number): Date | null {
  if (request.expires_in !== undefined && request.expires_at !== undefined)
    throw invalid('body.expires_in', 'exclusive', 'cannot be given together with expires_at')
  if (request.expires_in !== undefined)
    return checked(after(now, request.expires_in), 'body.expires_in', now, now, policy)
  if (request.expires_at !== undefined) return checkedExpiry(request.expires_at, now, now, policy)
  const seconds = Math.min(inherited ?? policy.KEY_DEFAULT_TTL ?? Infinity, policy.KEY_MAX_TTL ?? Infinity)
  return seconds === Infinity ? null : after(now, seconds)
}

/** The end that `expires_at` asks for, of a key that was issued at `createdAt`. */
export function checkedExpiry(text: string | null, createdAt: Date, now: Date, policy: Policy): Date | null {
  if (text === null) {
    if (policy.KEY_MAX_TTL === undefined) return null
    throw invalid('body.expires_at', 'maximum', `must be a time: keys live ${policy.KEY_MAX_TTL} seconds at most here`)
  }
  return checked(new Date(text), 'body.expires_at', createdAt, now, policy)
}

function checked(end: Date, field: string, createdAt: Date, now: Date, { KEY_MAX_TTL }: Policy): Date {
  if (Number.isNaN(end.getTime())) throw invalid(field, 'format', 'must be an RFC 3339 time that exists')
  if (end <= now) throw invalid(field, 'minimum', 'must be in the future')
  if (KEY_MAX_TTL !== undefined && end > after(createdAt, KEY_MAX_TTL))
    throw invalid(field, 'maximum', `must be at most ${KEY_MAX_TTL} seconds after the key is issued`)
  return end
}

function after(start: Date, seconds: number): Date {
  return new Date(start.getTime() + seconds * 1000)
}
