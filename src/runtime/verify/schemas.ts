/** What verify takes and answers. */

import { HandleSchema, MetadataSchema, nullableTime, ScopesSchema } from '../../http/schemas.js'
import { Type } from '../../http/type.js'
import type { RefusalCode } from '../../protocol/verdict.js'

export const REFUSALS: RefusalCode[] = ['malformed', 'unknown', 'revoked', 'expired', 'disabled', 'mecha_mismatch', 'insufficient_scope']

/** It has the looks of a key, and a checksum that is wrong. */
const EXAMPLE_KEY = 'mecha_01jd9p5v3fe8rr2k7m4q9wx0zt_' + '0'.repeat(60)

export const VerifyBody = Type.Object(
  {
    key: Type.String({ 'x-secret': true, description: 'The plaintext key, as it was presented: what issuing and rotating call `plaintext_key`, and not their `key`, which is a record. `secret-token:` in front of it (RFC 8959) is fine' }),
    mecha: Type.Optional(Type.String({ ...HandleSchema, description: 'The Mecha that the key must be of: `name^crew`' })),
    scopes: Type.Optional(Type.Unsafe<string[]>({ ...ScopesSchema, description: 'Scopes that the key must have, all of them' })),
  },
  {
    title: 'VerifyBody',
    additionalProperties: false,
    examples: [{ key: EXAMPLE_KEY, mecha: 'sales^acmecorp', scopes: ['orders:read'] }],
  },
)

/** Keys in one batch, at most. */
export const MAX_BATCH = 100

export const VerifyBatchBody = Type.Object(
  {
    keys: Type.Array(Type.Object(VerifyBody.properties, { title: 'KeyToVerify', additionalProperties: false }), {
      maxItems: MAX_BATCH, description: 'What verify is asked about each key. The same key may come more than once',
    }),
  },
  { title: 'VerifyBatchBody', additionalProperties: false, examples: [{ keys: [{ key: EXAMPLE_KEY, mecha: 'sales^acmecorp' }, { key: EXAMPLE_KEY }] }] },
)

export const Valid = Type.Object({
  valid: Type.Literal(true),
  key_id: Type.String({ description: 'Id of the key', examples: ['key_01jd9p5v3fe8rr2k7m4q9wx0zt'] }),
  mecha: Type.Object({ handle: Type.String(), name: Type.String(), crew: Type.String() }, { title: 'Mecha' }),
  org_id: Type.String({ description: 'The organization' }),
  scopes: Type.Array(Type.String(), { description: 'All scopes of the key' }),
  metadata: MetadataSchema,
  expires_at: nullableTime('When the key ends; null is never'),
}, { title: 'Valid' })

export const Refused = Type.Object({
  valid: Type.Literal(false),
  code: Type.Unsafe<RefusalCode>({
    type: 'string',
    enum: REFUSALS,
    description: 'Why not. `unknown` covers every key that was never issued here, or is none of this gateway\'s business',
  }),
}, { title: 'Refused' })

export const VerifyAnswer = Type.Union([Valid, Refused], { title: 'VerifyAnswer' })

export const VerifyBatchAnswer = Type.Object({
  results: Type.Array(VerifyAnswer, { description: 'What verify answers for each key, in the order in which they were asked' }),
}, { title: 'VerifyBatchAnswer' })
