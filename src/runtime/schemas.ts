import { Type } from '@fastify/type-provider-typebox'
import { HandleSchema, MetadataSchema, NullableTime, ScopesSchema } from '../http/schemas.js'

export const VerifyBody = Type.Object(
  {
    key: Type.String({ 'x-secret': true, description: 'The key as it was presented; `secret-token:` in front of it (RFC 8959) is fine' }),
    mecha: Type.Optional(HandleSchema),
    scopes: Type.Optional(ScopesSchema),
  },
  {
    additionalProperties: false,
    examples: [{ key: 'mecha_01jd9p5v3fe8rr2k7m4q9wx0zt_' + '0'.repeat(60), mecha: 'sales^acmecorp', scopes: ['orders:read'] }],
  },
)

const Valid = Type.Object({
  valid: Type.Literal(true),
  key_id: Type.String(),
  mecha: Type.Object({ handle: Type.String(), name: Type.String(), crew: Type.String() }),
  org_id: Type.String(),
  scopes: Type.Array(Type.String()),
  metadata: MetadataSchema,
  expires_at: NullableTime,
})

const Refused = Type.Object({
  valid: Type.Literal(false),
  code: Type.Union(
    (['malformed', 'unknown', 'revoked', 'expired', 'disabled', 'mecha_mismatch', 'insufficient_scope'] as const).map((code) => Type.Literal(code)),
    { description: 'Why not. `unknown` covers every key that was never issued here, or is none of this gateway\'s business' },
  ),
})

export const VerifyAnswer = Type.Union([Valid, Refused])
