import { keyIdSchema } from '../../http/schemas.js'
import { Type } from '../../http/type.js'
import { NONCE_PATTERN, NONCE_RULE } from '../../protocol/signature.js'

/** Seconds by which a gateway may tolerate a signed request's timestamp to be off, at most. */
const MAX_TOLERANCE = 400
/** Seconds by which the clocks that gateways go by may be apart. */
const CLOCK_MARGIN = 60
/** Seconds for which every gateway may accept a request that one accepts now: its timestamp may be as far ahead, and then as far behind. */
export const MIN_NONCE_TTL = 2 * MAX_TOLERANCE + CLOCK_MARGIN
/** Seconds: more than that. */
export const MAX_NONCE_TTL = 900

export const NonceBody = Type.Object(
  {
    key_id: keyIdSchema('Id of the key that signed, as verify tells it'),
    nonce: Type.String({ pattern: NONCE_PATTERN, 'x-rule': NONCE_RULE, description: 'The nonce as it was sent: 16 to 128 characters', examples: ['5a0c8e6e-58f5-4ec6-9d04-0d3c6c1b7f1e'] }),
    expires_at: Type.String({ format: 'date-time', description: `From when on the request is refused by its timestamp; ${MAX_NONCE_TTL} seconds from now at most. The nonce is kept for ${MIN_NONCE_TTL} seconds at least, for gateways that tolerate more. RFC 3339`, examples: ['2030-01-31T12:05:00Z'] }),
  },
  { title: 'NonceBody', additionalProperties: false, examples: [{ key_id: 'key_01jd9p5v3fe8rr2k7m4q9wx0zt', nonce: '5a0c8e6e-58f5-4ec6-9d04-0d3c6c1b7f1e', expires_at: '2030-01-31T12:05:00Z' }] },
)

export const NonceTaken = Type.Object({}, { title: 'NonceTaken', description: 'Nothing more to say: the request may pass' })
