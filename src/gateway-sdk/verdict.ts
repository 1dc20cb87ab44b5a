/** What a gateway learns of a key. The shapes are those of the service's `POST /v1/verify`. */

import { unmetRequirement, type RefusalCode, type Requirements } from '../protocol/verdict.js'

/** A good key: whose it is, and what it may do. Frozen, and the same object for each verify of a key that is cached. */
export interface Valid {
  readonly valid: true
  /** `key_…`: public, and fit for a log. */
  readonly key_id: string
  readonly mecha: { readonly handle: string; readonly name: string; readonly crew: string }
  readonly org_id: string
  readonly scopes: readonly string[]
  /** The platform's own notes. */
  readonly metadata: Readonly<Record<string, unknown>>
  /** RFC 3339, UTC; `null` is never. */
  readonly expires_at: string | null
}

export interface Refused {
  readonly valid: false
  readonly code: RefusalCode
}

export type Verdict = Valid | Refused

/** Holds a verdict against requirements, in the order in which the service does. */
export function judge(verdict: Verdict, requirements: Requirements): Verdict {
  if (!verdict.valid) return verdict
  const code = unmetRequirement(requirements, verdict.mecha.handle, verdict.scopes)
  return code === undefined ? verdict : { valid: false, code }
}
