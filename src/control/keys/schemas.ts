import type { Static } from 'typebox'
import { HandleSchema, MetadataSchema, nullable, nullableText, nullableTime, ScopesSchema, TimeSchema } from '../http/schemas.js'
import type { KeyRefusalsTable } from '../db/tables.js'
import { Type } from '../http/type.js'
import { ID_PATTERN } from '../credentials/id.js'
import type { KeyStatus } from '../credentials/status.js'
import { EVENT_TYPES } from './deps.js'
import { MAX_WAIT, type Propagation } from './receipts/receipts.js'
import { MAX_LISTED } from './keys/revoke.js'

/** Text on one line, for people: no control characters. */
const line = (maxLength: number, description: string) =>
  Type.String({ minLength: 1, maxLength, pattern: '^[^\\x00-\\x1f\\x7f-\\x9f]*$', 'x-rule': `must be 1 to ${maxLength} characters without control characters`, description })

const Name = line(100, 'What people call it')
const STATUSES: KeyStatus[] = ['active', 'disabled', 'expired', 'revoked']
const Status = (description: string) => Type.Unsafe<KeyStatus>({ type: 'string', enum: STATUSES, description, examples: ['active'] })
const EventType = Type.Unsafe<(typeof EVENT_TYPES)[number]>({ type: 'string', enum: [...EVENT_TYPES], description: 'What happened', examples: ['key.issued'] })
const ExpiresIn = Type.Integer({ 'minimum': 1, 'maximum': 3_162_240_000, 'x-not-with': 'expires_at', 'description': 'Seconds from now. Not together with `expires_at`', 'examples': [2_592_000] })
const ExpiresAt = nullableTime('When the key ends; null is never')

const EXAMPLE_ID = '01jd9p5v3fe8rr2k7m4q9wx0zt'
export const KeyIdSchema = Type.String({
  pattern: `^key_${ID_PATTERN}$`, 'x-rule': `must be a key id, as in key_${EXAMPLE_ID}`,
  description: 'Id of a key. It is no secret', examples: [`key_${EXAMPLE_ID}`],
})
export const GatewayIdSchema = Type.String({
  pattern: `^gw_${ID_PATTERN}$`, 'x-rule': `must be a gateway id, as in gw_${EXAMPLE_ID}`,
  description: 'Id of a gateway credential. It is no secret', examples: [`gw_${EXAMPLE_ID}`],
})

// What keys and gateway credentials have in common.
const CurrentStatus = Status('As of this answer')
const beginning = {
  created_at: TimeSchema,
  created_by: Type.String({ description: 'Who made it: `operator:` and the `sub` of their token, `builtin:` for a token of the built-in issuer, or `cli:` and a user' }),
}
const useAndEnd = {
  first_used_at: nullableTime('When it was first valid in a verify; null is never'),
  last_used_at: nullableTime('When it was last valid, here or at a gateway that answers from its own memory and reports it; some seconds late'),
  last_refused_at: nullableTime('When it was last presented and refused because it was revoked, expired or disabled, some seconds late: somebody still needs it. null is never'),
  last_refused_code: Type.Unsafe<KeyRefusalsTable['last_refused_code'] | null>(Type.Union([Type.Unsafe({ title: 'RefusedFor', type: 'string', enum: ['revoked', 'expired', 'disabled'] }), Type.Null()], { description: 'What it was then' })),
  revoked_at: nullableTime('When it was revoked; null is never'),
  revoked_by: nullableText('Who revoked it: as `created_by`, or `holder` for who presented the key itself'),
  revoke_reason: nullableText('Why, in their words'),
}
const OrgId = Type.String({ description: 'The organization', examples: ['acmecorp'] })

const PropagationSchema = Type.Union([
  Type.Unsafe<Propagation>(Type.Object({
    replicas: Type.Integer({ description: 'Replicas of the runtime plane that are alive' }),
    confirmed: Type.Integer({ description: 'Those of them that have applied it: none of these answers by what was before' }),
    complete: Type.Boolean({ description: 'Whether no replica answers by what was before: every one that is alive has applied it, there is one, and none that cannot be asked may be alive. Read this, and not whether the two numbers are the same' }),
    elapsed_ms: Type.Integer({ description: 'How long this call waited for them, in milliseconds' }),
  }, { title: 'Propagation' })),
  Type.Null(),
], { description: 'Which replicas have applied the change, in the answer of a call that made one and in that of a look at a revoked key. `null` when the database does not say' })

export const KeySchema = Type.Object(
  {
    id: KeyIdSchema,
    mecha: HandleSchema,
    org_id: OrgId,
    name: nullableText('What people call it'),
    status: CurrentStatus,
    scopes: Type.Array(Type.String(), { description: 'What the key may be used for' }),
    metadata: MetadataSchema,
    ...beginning,
    expires_at: ExpiresAt,
    ...useAndEnd,
    last_used_by: nullableText('Id of the gateway that asked about it, or reported it, at `last_used_at`; null where none did: an exchange, or a proxy at `AUTHZ_LISTEN`'),
    rotated_from: nullableText('Id of the key that it succeeded'),
    rotated_to: nullableText('Id of the key that succeeded it'),
    propagation: Type.Optional(PropagationSchema),
  },
  { $id: 'Key', title: 'Key', description: 'What is known of a key: a record, with its id. The key itself, its plaintext, is not in it' },
)

export const GatewaySchema = Type.Object(
  {
    id: GatewayIdSchema,
    org_id: OrgId,
    name: Name,
    status: CurrentStatus,
    ...beginning,
    ...useAndEnd,
    propagation: Type.Optional(PropagationSchema),
  },
  { $id: 'Gateway', title: 'Gateway', description: 'What is known of a gateway credential' },
)

export const EventSchema = Type.Object(
  {
    id: Type.String({ description: 'Position in the audit trail, in the order of commits. Pass it as `after`' }),
    at: TimeSchema,
    type: EventType,
    key_id: Type.String({ description: 'Id of the key or of the gateway credential' }),
    mecha: nullableText('The Mecha; null for a gateway credential'),
    actor: Type.String({ description: 'Who did it: `operator:` and the `sub` of their token, `builtin:` for a token of the built-in issuer, `cli:` and a user, or `holder` for who presented the key itself' }),
    request_id: Type.String({ description: 'The `X-Request-Id` of the answer, which the log has too' }),
    address: Type.String({ description: 'Where the request came from' }),
    data: Type.Object({}, { title: 'EventData', additionalProperties: true, description: 'What is particular to the type' }),
  },
  { $id: 'Event', title: 'Event', description: 'An entry of the audit trail' },
)

const plaintextKey = (description: string) => Type.String({ 'x-secret': true, description })

export const RevealedKey = Type.Object({
  key: Type.Ref('Key#'),
  plaintext_key: plaintextKey('The key itself, to be presented by its runtime, and to be sent to verify as `key`. Shown now and never again'),
  propagation: Type.Optional(PropagationSchema),
}, { title: 'RevealedKey', description: '`key` is what is known of the key from now on: a record, with its id and without a secret. `plaintext_key` is the key itself, which verify takes as `key`' })
export const RevealedGateway = Type.Object({
  gateway: Type.Ref('Gateway#'),
  plaintext_key: plaintextKey('The credential. Shown now and never again'),
}, { title: 'RevealedGateway' })

const details = { name: Type.Optional(Name), scopes: Type.Optional(ScopesSchema), metadata: Type.Optional(MetadataSchema) }
const expiry = { expires_in: Type.Optional(ExpiresIn), expires_at: Type.Optional(ExpiresAt) }
const strict = (title: string, example: object) => ({ title, additionalProperties: false, examples: [example] })

export const IssueBody = Type.Object(
  { mecha: HandleSchema, ...details, ...expiry },
  strict('IssueBody', { mecha: 'sales^acmecorp', name: 'production', scopes: ['orders:read'], expires_in: 2_592_000, metadata: { region: 'eu' } }),
)
export const RotateBody = Type.Object(
  { overlap_seconds: Type.Optional(Type.Integer({ minimum: 0, description: 'How long the old key stays valid; 0 ends it at once' })), ...details, ...expiry },
  strict('RotateBody', { overlap_seconds: 3600 }),
)
export const UpdateBody = Type.Object(
  { name: Type.Optional(nullable(Name)), metadata: Type.Optional(MetadataSchema), expires_at: Type.Optional(ExpiresAt), enabled: Type.Optional(Type.Boolean({ description: '`false` suspends the key, `true` takes that back' })) },
  { ...strict('UpdateBody', { name: 'production, eu', enabled: true }), minProperties: 1 },
)
export const RevokeBody = Type.Object({ reason: Type.Optional(line(500, 'Why, for the audit trail')) }, strict('RevokeBody', { reason: 'found in a public repository' }))
export const GatewayBody = Type.Object({ name: Name }, strict('GatewayBody', { name: 'edge-eu-1' }))

const OnlyStatus = Status('Only those with this status. Those that have expired are in the order in which they did, the last first, unless `mecha` is given too')
const OnlyMecha = Type.String({ ...HandleSchema, description: 'Only those of this Mecha: `name^crew`' })
const Limit = Type.Integer({ minimum: 1, maximum: 100, default: 50, description: 'Most entries in one page', examples: [50] })
const PageCursor = Type.String({ maxLength: 200, description: '`next_cursor` of the page before' })

export const ListQuery = Type.Object(
  { mecha: Type.Optional(OnlyMecha), status: Type.Optional(OnlyStatus), limit: Type.Optional(Limit), cursor: Type.Optional(PageCursor) },
  { additionalProperties: false },
)
export const GatewayListQuery = Type.Object(
  { status: Type.Optional(OnlyStatus), limit: Type.Optional(Limit), cursor: Type.Optional(PageCursor) },
  { additionalProperties: false },
)
export const EventsQuery = Type.Object(
  {
    mecha: Type.Optional(OnlyMecha),
    key_id: Type.Optional(Type.String({
      pattern: `^(key|gw)_${ID_PATTERN}$`, 'x-rule': 'must be a key id or a gateway id',
      description: 'Only those of this key or gateway credential', examples: [`key_${EXAMPLE_ID}`],
    })),
    type: Type.Optional(EventType),
    actor: Type.Optional(line(300, 'Only what they did: as events show it')),
    since: Type.Optional(Type.String({ ...TimeSchema, description: 'Only what happened at this time or later. RFC 3339. Times are the database\'s: what was written before its clock was set back by more than a day may be left out' })),
    until: Type.Optional(Type.String({ ...TimeSchema, description: 'Only what happened before this time. RFC 3339' })),
    after: Type.Optional(Type.String({
      pattern: '^[0-9]{1,18}$', 'x-rule': 'must be the id of an event',
      description: '`next_after` of the page before; from the start without it', examples: ['0'],
    })),
    limit: Type.Optional(Limit),
  },
  { additionalProperties: false },
)

const NextCursor = nullableText('Pass it as `cursor` for the next page; null on the last')
export const KeyPage = Type.Object({ keys: Type.Array(Type.Ref('Key#')), next_cursor: NextCursor }, { title: 'KeyPage' })
export const GatewayPage = Type.Object({ gateways: Type.Array(Type.Ref('Gateway#')), next_cursor: NextCursor }, { title: 'GatewayPage' })
export const EventPage = Type.Object({
  events: Type.Array(Type.Ref('Event#')),
  next_after: Type.String({ description: 'Pass it as `after` to go on, now or later: no event is skipped' }),
}, { title: 'EventPage' })
export const KillSwitchAnswer = Type.Object({
  mecha: HandleSchema,
  revoked: Type.Array(Type.String(), { maxItems: MAX_LISTED, description: `Ids of keys that this call revoked: all of them, or the first ${MAX_LISTED}. The audit trail has the rest` }),
  revoked_count: Type.Integer({ description: 'How many keys this call revoked' }),
  remaining: Type.Integer({ description: 'How many keys of the Mecha are still alive because the time was over: **repeat the call until this is 0**. What was revoked stays so' }),
  propagation: PropagationSchema,
}, { title: 'KillSwitchAnswer' })

export const PreferHeaders = Type.Object({
  prefer: Type.Optional(Type.String({
    maxLength: 200,
    description: `\`wait=N\` (RFC 7240): how many seconds to wait for the replicas; 2 without it, ${MAX_WAIT} at most, 0 does not wait`,
    examples: ['wait=5'],
  })),
})
export const IdempotencyHeaders = Type.Object({
  'idempotency-key': Type.Optional(Type.String({
    minLength: 1, maxLength: 255,
    description: 'A repeat with the same value makes no second key: it reveals a new secret of the same key, unless that has been used',
    examples: ['5a0c8e6e-58f5-4ec6-9d04-0d3c6c1b7f1e'],
  })),
})

export const RotateHeaders = Type.Object({ ...IdempotencyHeaders.properties, ...PreferHeaders.properties })

export type KeyBody = Static<typeof KeySchema>
export type GatewayBodyOut = Static<typeof GatewaySchema>
export type EventBody = Static<typeof EventSchema>
