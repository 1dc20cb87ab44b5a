/** The schemas that several capabilities of the control plane share. */

import { HandleSchema, nullableText, nullableTime, TimeSchema } from '../http/schemas.js'
import type { KeyRefusalsTable } from '../db/tables.js'
import { Type } from '../http/type.js'
import type { KeyStatus } from '../credentials/status.js'

/** Text on one line, for people: no control characters. */
export const line = (maxLength: number, description: string) =>
  Type.String({ minLength: 1, maxLength, pattern: '^[^\\x00-\\x1f\\x7f-\\x9f]*$', 'x-rule': `must be 1 to ${maxLength} characters without control characters`, description })

export const Name = line(100, 'What people call it')
const STATUSES: KeyStatus[] = ['active', 'disabled', 'expired', 'revoked']
export const Status = (description: string) => Type.Unsafe<KeyStatus>({ type: 'string', enum: STATUSES, description, examples: ['active'] })

export const EXAMPLE_ID = '01jd9p5v3fe8rr2k7m4q9wx0zt'

// What keys and gateway credentials have in common.
export const CurrentStatus = Status('As of this answer')
export const beginning = {
  created_at: TimeSchema,
  created_by: Type.String({ description: 'Who made it: `operator:` and the `sub` of their token, `builtin:` for a token of the built-in issuer, or `cli:` and a user' }),
}
export const useAndEnd = {
  first_used_at: nullableTime('When it was first valid in a verify; null is never'),
  last_used_at: nullableTime('When it was last valid, here or at a gateway that answers from its own memory and reports it; some seconds late'),
  last_refused_at: nullableTime('When it was last presented and refused because it was revoked, expired or disabled, some seconds late: somebody still needs it. null is never'),
  last_refused_code: Type.Unsafe<KeyRefusalsTable['last_refused_code'] | null>(Type.Union([Type.Unsafe({ title: 'RefusedFor', type: 'string', enum: ['revoked', 'expired', 'disabled'] }), Type.Null()], { description: 'What it was then' })),
  revoked_at: nullableTime('When it was revoked; null is never'),
  revoked_by: nullableText('Who revoked it: as `created_by`, or `holder` for who presented the key itself'),
  revoke_reason: nullableText('Why, in their words'),
}
export const OrgId = Type.String({ description: 'The organization', examples: ['acmecorp'] })

export const plaintextKey = (description: string) => Type.String({ 'x-secret': true, description })

/** A body with no other fields than these. */
export const strict = (title: string, example: object) => ({ title, additionalProperties: false, examples: [example] })

export const RevokeBody = Type.Object({ reason: Type.Optional(line(500, 'Why, for the audit trail')) }, strict('RevokeBody', { reason: 'found in a public repository' }))

export const OnlyStatus = Status('Only those with this status. Those that have expired are in the order in which they did, the last first, unless `mecha` is given too')
export const OnlyMecha = Type.String({ ...HandleSchema, description: 'Only those of this Mecha: `name^crew`' })
export const Limit = Type.Integer({ minimum: 1, maximum: 100, default: 50, description: 'Most entries in one page', examples: [50] })
export const PageCursor = Type.String({ maxLength: 200, description: '`next_cursor` of the page before' })
export const NextCursor = nullableText('Pass it as `cursor` for the next page; null on the last')
