/** What the API says of receipts: how long to wait for one, and what it shows. */

import { Type } from '../../http/type.js'
import { MAX_WAIT } from './prefer.js'
import type { Propagation } from './receipts.js'

/** The header of an answer that may have waited for the replicas. */
export const RECEIPT_HEADER = { 'Preference-Applied': 'How long the call would have waited, where the request said so' }

export const PropagationSchema = Type.Union([
  Type.Unsafe<Propagation>(Type.Object({
    replicas: Type.Integer({ description: 'Replicas of the runtime plane that are alive' }),
    confirmed: Type.Integer({ description: 'Those of them that have applied it: none of these answers by what was before' }),
    complete: Type.Boolean({ description: 'Whether no replica answers by what was before: every one that is alive has applied it, there is one, and none that cannot be asked may be alive. Read this, and not whether the two numbers are the same' }),
    elapsed_ms: Type.Integer({ description: 'How long this call waited for them, in milliseconds' }),
  }, { title: 'Propagation' })),
  Type.Null(),
], { description: 'Which replicas have applied the change, in the answer of a call that made one and in that of a look at a revoked key. `null` when the database does not say' })

export const PreferHeaders = Type.Object({
  prefer: Type.Optional(Type.String({
    maxLength: 200,
    description: `\`wait=N\` (RFC 7240): how many seconds to wait for the replicas; 2 without it, ${MAX_WAIT} at most, 0 does not wait`,
    examples: ['wait=5'],
  })),
})
