import { keyIdSchema } from '../../http/schemas.js'
import { Type } from '../../http/type.js'

/** Keys in one comparison, at most. */
export const MAX_REVALIDATED = 1000

export const RevalidateBody = Type.Object(
  {
    keys: Type.Array(
      Type.Object(
        {
          key_id: keyIdSchema('Id of the key, as verify tells it'),
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
