import { NONCE_PATTERN, NONCE_RULE } from '../protocol/signature.js'
import { HandleSchema, MetadataSchema, nullableTime, ScopesSchema } from '../http/schemas.js'
import { Type } from '../http/type.js'
import { ID_PATTERN } from '../credentials/id.js'
import type { RefusalCode } from '../credentials/verdict.js'

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

export const RevokeTokenBody = Type.Object(
  {
    token: Type.String({ 'x-secret': true, description: 'The key or the gateway credential' }),
    token_type_hint: Type.Optional(Type.String({ description: 'Not needed, and not looked at' })),
  },
  // What RFC 6749 does not name is ignored, not refused: OAuth clients send their own id along.
  { title: 'RevokeTokenBody', additionalProperties: true, examples: [{ token: EXAMPLE_KEY }] },
)
export const Revoked = Type.Object({}, { title: 'Revoked', description: 'Nothing: whatever the token was, it is not good' })

/** Seconds by which a gateway may tolerate a signed request's timestamp to be off, at most. */
const MAX_TOLERANCE = 400
/** Seconds by which the clocks that gateways go by may be apart. */
const CLOCK_MARGIN = 60
/** Seconds for which every gateway may accept a request that one accepts now: its timestamp may be as far ahead, and then as far behind. */
export const MIN_NONCE_TTL = 2 * MAX_TOLERANCE + CLOCK_MARGIN
/** Seconds: more than that. */
export const MAX_NONCE_TTL = 900

const keyId = (description: string) =>
  Type.String({
    pattern: `^key_${ID_PATTERN}$`, 'x-rule': 'must be a key id, as in key_01jd9p5v3fe8rr2k7m4q9wx0zt',
    description, examples: ['key_01jd9p5v3fe8rr2k7m4q9wx0zt'],
  })

export const NonceBody = Type.Object(
  {
    key_id: keyId('Id of the key that signed, as verify tells it'),
    nonce: Type.String({ pattern: NONCE_PATTERN, 'x-rule': NONCE_RULE, description: 'The nonce as it was sent: 16 to 128 characters', examples: ['5a0c8e6e-58f5-4ec6-9d04-0d3c6c1b7f1e'] }),
    expires_at: Type.String({ format: 'date-time', description: `From when on the request is refused by its timestamp; ${MAX_NONCE_TTL} seconds from now at most. The nonce is kept for ${MIN_NONCE_TTL} seconds at least, for gateways that tolerate more. RFC 3339`, examples: ['2030-01-31T12:05:00Z'] }),
  },
  { title: 'NonceBody', additionalProperties: false, examples: [{ key_id: 'key_01jd9p5v3fe8rr2k7m4q9wx0zt', nonce: '5a0c8e6e-58f5-4ec6-9d04-0d3c6c1b7f1e', expires_at: '2030-01-31T12:05:00Z' }] },
)
/** Uses in one report, at most. */
export const MAX_USES = 1000

export const UsageBody = Type.Object(
  {
    uses: Type.Array(
      Type.Object(
        {
          key_id: keyId('Id of the key, as verify tells it'),
          used_at: Type.String({ format: 'date-time', maxLength: 64, description: 'When it was last used. RFC 3339', examples: ['2030-01-31T12:00:00Z'] }),
        },
        { title: 'Use', additionalProperties: false },
      ),
      { minItems: 1, maxItems: MAX_USES, description: 'One for each key is enough: the last' },
    ),
  },
  { title: 'UsageBody', additionalProperties: false, examples: [{ uses: [{ key_id: 'key_01jd9p5v3fe8rr2k7m4q9wx0zt', used_at: '2030-01-31T12:00:00Z' }] }] },
)
export const UsageTaken = Type.Object({}, { title: 'UsageTaken', description: 'Nothing more to say' })

export const NonceTaken = Type.Object({}, { title: 'NonceTaken', description: 'Nothing more to say: the request may pass' })

/** Keys in one comparison, at most. */
export const MAX_REVALIDATED = 1000

export const RevalidateBody = Type.Object(
  {
    keys: Type.Array(
      Type.Object(
        {
          key_id: keyId('Id of the key, as verify tells it'),
          version: Type.String({ pattern: '^[!-~]{1,64}$', 'x-rule': 'must have 1 to 64 printable ASCII characters', description: 'What `X-Key-Version` said when the key was verified', examples: ['48151623'] }),
        },
        { title: 'HeldVersion', additionalProperties: false },
      ),
      { minItems: 1, maxItems: MAX_REVALIDATED, description: 'The keys, by id and version: not their plaintexts' },
    ),
  },
  { title: 'RevalidateBody', additionalProperties: false, examples: [{ keys: [{ key_id: 'key_01jd9p5v3fe8rr2k7m4q9wx0zt', version: '48151623' }] }] },
)
export const Revalidated = Type.Object(
  { changed: Type.Array(Type.String(), { description: 'Ids of those that have changed, or that this gateway knows nothing of' }) },
  { title: 'Revalidated' },
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
