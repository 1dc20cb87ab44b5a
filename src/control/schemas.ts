import { Type, type Static } from '@fastify/type-provider-typebox'
import { HandleSchema, MetadataSchema, NullableText, NullableTime, ScopesSchema, TimeSchema } from '../http/schemas.js'
import { ID_PATTERN } from '../key/id.js'
import type { KeyStatus } from '../key/status.js'
import { EVENT_TYPES } from './parts.js'

/** Text on one line, for people: no control characters. */
const line = (maxLength: number, description: string) =>
  Type.String({ minLength: 1, maxLength, pattern: '^[^\\p{Cc}]*$', 'x-rule': `must be 1 to ${maxLength} characters without control characters`, description })

const Name = line(100, 'What people call it')
const Status = Type.Unsafe<KeyStatus>({ type: 'string', enum: ['active', 'disabled', 'expired', 'revoked'], description: 'As of this answer' })
const ExpiresIn = Type.Integer({ minimum: 1, maximum: 3_162_240_000, description: 'Seconds from now. Not together with `expires_at`', examples: [2_592_000] })

export const KeyIdSchema = Type.String({ pattern: `^key_${ID_PATTERN}$`, 'x-rule': 'must be a key id, as in key_01jd9p5v3fe8rr2k7m4q9wx0zt' })
export const GatewayIdSchema = Type.String({ pattern: `^gw_${ID_PATTERN}$`, 'x-rule': 'must be a gateway id, as in gw_01jd9p5v3fe8rr2k7m4q9wx0zt' })

export const KeySchema = Type.Object(
  {
    id: Type.String({ examples: ['key_01jd9p5v3fe8rr2k7m4q9wx0zt'] }),
    mecha: HandleSchema,
    org_id: Type.String(),
    name: NullableText,
    status: Status,
    scopes: Type.Array(Type.String()),
    metadata: MetadataSchema,
    created_at: TimeSchema,
    created_by: Type.String(),
    expires_at: NullableTime,
    first_used_at: NullableTime,
    last_used_at: NullableTime,
    revoked_at: NullableTime,
    revoked_by: NullableText,
    revoke_reason: NullableText,
    rotated_from: NullableText,
    rotated_to: NullableText,
  },
  { $id: 'Key', title: 'Key', description: 'What is known of a key. The key itself is not' },
)

export const GatewaySchema = Type.Object(
  {
    id: Type.String({ examples: ['gw_01jd9p5v3fe8rr2k7m4q9wx0zt'] }),
    org_id: Type.String(),
    name: Type.String(),
    status: Status,
    created_at: TimeSchema,
    created_by: Type.String(),
    first_used_at: NullableTime,
    last_used_at: NullableTime,
    revoked_at: NullableTime,
    revoked_by: NullableText,
    revoke_reason: NullableText,
  },
  { $id: 'Gateway', title: 'Gateway', description: 'What is known of a gateway credential' },
)

export const EventSchema = Type.Object(
  {
    id: Type.String({ description: 'Position in the audit trail, in the order of commits. Pass it as `after`' }),
    at: TimeSchema,
    type: Type.Unsafe<(typeof EVENT_TYPES)[number]>({ type: 'string', enum: [...EVENT_TYPES] }),
    key_id: Type.String(),
    mecha: NullableText,
    actor: Type.String(),
    request_id: Type.String(),
    address: Type.String(),
    data: Type.Object({}, { additionalProperties: true }),
  },
  { $id: 'Event', title: 'Event' },
)

const plaintextKey = (description: string) => Type.String({ 'x-secret': true, description })

export const RevealedKey = Type.Object({
  key: Type.Ref('Key#'),
  plaintext_key: plaintextKey('The key. Shown now and never again'),
})
export const RevealedGateway = Type.Object({
  gateway: Type.Ref('Gateway#'),
  plaintext_key: plaintextKey('The credential. Shown now and never again'),
})

const details = { name: Type.Optional(Name), scopes: Type.Optional(ScopesSchema), metadata: Type.Optional(MetadataSchema) }
const expiry = { expires_in: Type.Optional(ExpiresIn), expires_at: Type.Optional(NullableTime) }
const strict = (example: object) => ({ additionalProperties: false, examples: [example] })

export const IssueBody = Type.Object(
  { mecha: HandleSchema, ...details, ...expiry },
  strict({ mecha: 'sales^acmecorp', name: 'production', scopes: ['orders:read'], expires_in: 2_592_000, metadata: { region: 'eu' } }),
)
export const RotateBody = Type.Object(
  { overlap_seconds: Type.Optional(Type.Integer({ minimum: 0, description: 'How long the old key stays valid; 0 ends it at once' })), ...details, ...expiry },
  strict({ overlap_seconds: 3600 }),
)
export const UpdateBody = Type.Object(
  { name: Type.Optional(Type.Union([Name, Type.Null()])), metadata: Type.Optional(MetadataSchema), expires_at: Type.Optional(NullableTime), enabled: Type.Optional(Type.Boolean()) },
  { ...strict({ name: 'production, eu', enabled: true }), minProperties: 1 },
)
export const RevokeBody = Type.Object({ reason: Type.Optional(line(500, 'Why, for the audit trail')) }, strict({ reason: 'found in a public repository' }))
export const GatewayBody = Type.Object({ name: Name }, strict({ name: 'edge-eu-1' }))

const Limit = Type.Integer({ minimum: 1, maximum: 100, default: 50 })
const PageCursor = Type.String({ maxLength: 200, description: '`next_cursor` of the page before' })

export const ListQuery = Type.Object(
  { mecha: Type.Optional(HandleSchema), status: Type.Optional(Status), limit: Type.Optional(Limit), cursor: Type.Optional(PageCursor) },
  { additionalProperties: false },
)
export const GatewayListQuery = Type.Object(
  { status: Type.Optional(Status), limit: Type.Optional(Limit), cursor: Type.Optional(PageCursor) },
  { additionalProperties: false },
)
export const EventsQuery = Type.Object(
  {
    mecha: Type.Optional(HandleSchema),
    key_id: Type.Optional(Type.String({ pattern: `^(key|gw)_${ID_PATTERN}$`, 'x-rule': 'must be a key id or a gateway id' })),
    type: Type.Optional(Type.Unsafe<(typeof EVENT_TYPES)[number]>({ type: 'string', enum: [...EVENT_TYPES] })),
    after: Type.Optional(Type.String({ pattern: '^[0-9]{1,18}$', 'x-rule': 'must be the id of an event' })),
    limit: Type.Optional(Limit),
  },
  { additionalProperties: false },
)

const NextCursor = Type.Union([Type.String(), Type.Null()], { description: 'Pass it as `cursor` for the next page; null on the last' })
export const KeyPage = Type.Object({ keys: Type.Array(Type.Ref('Key#')), next_cursor: NextCursor })
export const GatewayPage = Type.Object({ gateways: Type.Array(Type.Ref('Gateway#')), next_cursor: NextCursor })
export const EventPage = Type.Object({
  events: Type.Array(Type.Ref('Event#')),
  next_after: Type.String({ description: 'Pass it as `after` to go on, now or later: no event is skipped' }),
})
export const KillSwitchAnswer = Type.Object({ mecha: HandleSchema, revoked: Type.Array(Type.String(), { description: 'Ids of the keys that this call revoked' }) })

export const IdempotencyHeaders = Type.Object({
  'idempotency-key': Type.Optional(Type.String({ minLength: 1, maxLength: 255, description: 'A repeat with the same value makes no second key' })),
})

export type KeyBody = Static<typeof KeySchema>
export type GatewayBodyOut = Static<typeof GatewaySchema>
export type EventBody = Static<typeof EventSchema>
