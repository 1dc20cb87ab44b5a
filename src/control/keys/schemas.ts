/** What the API takes and says of keys. */

import type { Static } from 'typebox'
import { HandleSchema, MetadataSchema, nullable, nullableText, nullableTime, ScopesSchema } from '../../http/schemas.js'
import { Type } from '../../http/type.js'
import { ID_PATTERN } from '../../credentials/id.js'
import { beginning, CurrentStatus, EXAMPLE_ID, Limit, Name, NextCursor, OnlyMecha, OnlyStatus, OrgId, PageCursor, plaintextKey, strict, useAndEnd } from '../common-schemas.js'
import { PreferHeaders, PropagationSchema } from '../receipts/schemas.js'
import { MAX_LISTED } from './kill-switch.js'

const ExpiresIn = Type.Integer({ 'minimum': 1, 'maximum': 3_162_240_000, 'x-not-with': 'expires_at', 'description': 'Seconds from now. Not together with `expires_at`', 'examples': [2_592_000] })
const ExpiresAt = nullableTime('When the key ends; null is never')

export const KeyIdSchema = Type.String({
  pattern: `^key_${ID_PATTERN}$`, 'x-rule': `must be a key id, as in key_${EXAMPLE_ID}`,
  description: 'Id of a key. It is no secret', examples: [`key_${EXAMPLE_ID}`],
})

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

export const RevealedKey = Type.Object({
  key: Type.Ref('Key#'),
  plaintext_key: plaintextKey('The key itself, to be presented by its runtime, and to be sent to verify as `key`. Shown now and never again'),
  propagation: Type.Optional(PropagationSchema),
}, { title: 'RevealedKey', description: '`key` is what is known of the key from now on: a record, with its id and without a secret. `plaintext_key` is the key itself, which verify takes as `key`' })

const details = { name: Type.Optional(Name), scopes: Type.Optional(ScopesSchema), metadata: Type.Optional(MetadataSchema) }
const expiry = { expires_in: Type.Optional(ExpiresIn), expires_at: Type.Optional(ExpiresAt) }

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

export const ListQuery = Type.Object(
  { mecha: Type.Optional(OnlyMecha), status: Type.Optional(OnlyStatus), limit: Type.Optional(Limit), cursor: Type.Optional(PageCursor) },
  { additionalProperties: false },
)

export const KeyPage = Type.Object({ keys: Type.Array(Type.Ref('Key#')), next_cursor: NextCursor }, { title: 'KeyPage' })

export const KillSwitchAnswer = Type.Object({
  mecha: HandleSchema,
  revoked: Type.Array(Type.String(), { maxItems: MAX_LISTED, description: `Ids of keys that this call revoked: all of them, or the first ${MAX_LISTED}. The audit trail has the rest` }),
  revoked_count: Type.Integer({ description: 'How many keys this call revoked' }),
  remaining: Type.Integer({ description: 'How many keys of the Mecha are still alive because the time was over: **repeat the call until this is 0**. What was revoked stays so' }),
  propagation: PropagationSchema,
}, { title: 'KillSwitchAnswer' })

export const IdempotencyHeaders = Type.Object({
  'idempotency-key': Type.Optional(Type.String({
    minLength: 1, maxLength: 255,
    description: 'A repeat with the same value makes no second key: it reveals a new secret of the same key, unless that has been used',
    examples: ['5a0c8e6e-58f5-4ec6-9d04-0d3c6c1b7f1e'],
  })),
})

export const RotateHeaders = Type.Object({ ...IdempotencyHeaders.properties, ...PreferHeaders.properties })

export type KeyBody = Static<typeof KeySchema>
