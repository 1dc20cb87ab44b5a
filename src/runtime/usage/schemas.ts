import { keyIdSchema } from '../../http/schemas.js'
import { Type } from '../../http/type.js'

/** Uses in one report, at most. */
export const MAX_USES = 1000

export const UsageBody = Type.Object(
  {
    uses: Type.Array(
      Type.Object(
        {
          key_id: keyIdSchema('Id of the key, as verify tells it'),
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
