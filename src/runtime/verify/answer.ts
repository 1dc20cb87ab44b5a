/** What verify answers, as its schema has it: JSON text that is made once for a key, and not with every verify. */

import type { Static } from 'typebox'
import { parseHandle } from '../../credentials/handle.js'
import { publicId } from '../../credentials/id.js'
import type { RefusalCode } from '../../protocol/verdict.js'
import { REFUSALS, type Refused, type Valid } from './schemas.js'
import type { CredentialRow } from './store.js'

const REFUSED = Object.fromEntries(REFUSALS.map((code) => [code, JSON.stringify({ valid: false, code } satisfies Static<typeof Refused>)])) as Record<RefusalCode, string>

/** The answer to a verify, in ASCII: a character is a byte. */
export function answerOf(verdict: { readonly answer: string } | RefusalCode): string {
  return typeof verdict === 'string' ? REFUSED[verdict] : verdict.answer
}

/** The answer for this key while it is valid. */
export function validAnswer({ id, mecha, org_id, scopes, metadata, expires_at }: CredentialRow): string {
  const answer: Static<typeof Valid> = {
    valid: true,
    key_id: publicId('mecha', id),
    mecha: parseHandle(mecha!),
    org_id: org_id!,
    scopes,
    metadata,
    expires_at: expires_at && expires_at.toISOString(),
  }
  return JSON.stringify(answer).replace(/[\u0080-\uffff]/g, (character) => `\\u${character.charCodeAt(0).toString(16).padStart(4, '0')}`)
}
