/** When a key ends: what was asked for, what the policy allows. Pure. */

import type { Settings } from '../../config.js'
import { invalid, type Problem } from '../../errors.js'

export interface ExpiryRequest {
  /** Seconds from now. */
  readonly expires_in?: number | undefined
  /** RFC 3339; `null` asks for no end. */
  readonly expires_at?: string | null | undefined
}

type Policy = Pick<Settings, 'KEY_DEFAULT_TTL' | 'KEY_MAX_TTL'>

/** When a new key ends, as far as that is known before the database makes it. With neither a life nor an end, it does not end. */
export interface Term {
  /** From when it is made. */
  readonly lifeSeconds: number | null
  readonly endsAt: Date | null
}

/**
 * The term that a request asks for. A life in seconds is checked here, and whether an end is within the policy by
 * `issue_key`, by the database's clock.
 *
 * @param inherited life in seconds to take when the request names none; for a rotation, the old key's
 * @throws Problem `invalid_request` naming the field and the rule
 */
export function termOfNew(request: ExpiryRequest, policy: Policy, inherited?: number): Term {
  const { expires_in: seconds, expires_at: end } = request
  if (seconds !== undefined && end !== undefined) throw invalid('body.expires_in', 'exclusive', 'cannot be given together with expires_at')
  if (seconds !== undefined) {
    if (seconds > (policy.KEY_MAX_TTL ?? Infinity)) throw tooLate('body.expires_in', policy)
    return { lifeSeconds: seconds, endsAt: null }
  }
  if (end !== undefined) return { lifeSeconds: null, endsAt: timeOf(end, policy) }
  const life = Math.min(inherited ?? policy.KEY_DEFAULT_TTL ?? Infinity, policy.KEY_MAX_TTL ?? Infinity)
  return { lifeSeconds: life === Infinity ? null : life, endsAt: null }
}

/**
 * The end of a new key, as `issue_key` computes it in SQL. A test compares the two.
 *
 * @throws Problem `invalid_request`
 */
export function endOfNew({ lifeSeconds, endsAt }: Term, now: Date, policy: Policy): Date | null {
  if (endsAt) return checked(endsAt, now, now, policy)
  return lifeSeconds === null ? null : after(now, lifeSeconds)
}

/** The end that `expires_at` asks for, of a key that was issued at `createdAt`. */
export function checkedExpiry(text: string | null, createdAt: Date, now: Date, policy: Policy): Date | null {
  const end = timeOf(text, policy)
  return end && checked(end, createdAt, now, policy)
}

function timeOf(text: string | null, { KEY_MAX_TTL }: Policy): Date | null {
  if (text === null) {
    if (KEY_MAX_TTL === undefined) return null
    throw invalid('body.expires_at', 'maximum', `must be a time: keys live ${KEY_MAX_TTL} seconds at most here`)
  }
  const end = new Date(text)
  if (Number.isNaN(end.getTime())) throw invalid('body.expires_at', 'format', 'must be an RFC 3339 time that exists')
  return end
}

function checked(end: Date, createdAt: Date, now: Date, policy: Policy): Date {
  if (end <= now) throw invalid('body.expires_at', 'minimum', 'must be in the future')
  if (policy.KEY_MAX_TTL !== undefined && end > after(createdAt, policy.KEY_MAX_TTL)) throw tooLate('body.expires_at', policy)
  return end
}

function tooLate(field: string, { KEY_MAX_TTL }: Policy): Problem {
  return invalid(field, 'maximum', `must be at most ${KEY_MAX_TTL} seconds after the key is issued`)
}

function after(start: Date, seconds: number): Date {
  return new Date(start.getTime() + seconds * 1000)
}
