/** What verify answers about a key, decided without I/O. */

import { statusAt, type Life } from './status.js'

export type RefusalCode =
  | 'malformed'
  | 'unknown'
  | 'revoked'
  | 'expired'
  | 'disabled'
  | 'mecha_mismatch'
  | 'insufficient_scope'

/** What the caller of verify asks beyond the key itself. */
export interface Demand {
  readonly mecha?: string | undefined
  readonly scopes?: readonly string[] | undefined
}

/**
 * Why an authenticated key is refused at `now`, or `undefined` when it is valid.
 * What the key is comes before what was asked of it.
 */
export function refusalOf(
  key: Life & { readonly mecha: string | null; readonly scopes: readonly string[] },
  now: Date | number,
  demand: Demand,
): RefusalCode | undefined {
  const status = statusAt(key, now)
  if (status !== 'active') return status
  if (demand.mecha !== undefined && demand.mecha !== key.mecha) return 'mecha_mismatch'
  if (demand.scopes?.some((scope) => !key.scopes.includes(scope))) return 'insufficient_scope'
  return undefined
}
