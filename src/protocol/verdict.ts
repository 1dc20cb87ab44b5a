/** Why a key is refused, and in which order: what the key is comes before what was asked of it. The service and its gateway SDK both judge by this. */

export type RefusalCode =
  | 'malformed'
  | 'unknown'
  | 'revoked'
  | 'expired'
  | 'disabled'
  | 'mecha_mismatch'
  | 'insufficient_scope'

/** What a caller requires of a key beyond that it is valid. */
export interface Requirements {
  /** The Mecha that the key must be of: `name^crew`. */
  readonly mecha?: string | undefined
  /** Scopes that the key must have, all of them. */
  readonly scopes?: readonly string[] | undefined
}

/** Which requirement a valid key does not meet, or `undefined` when it meets them all. */
export function unmetRequirement(
  { mecha, scopes }: Requirements,
  keyMecha: string | null,
  keyScopes: readonly string[],
): 'mecha_mismatch' | 'insufficient_scope' | undefined {
  if (mecha !== undefined && mecha !== keyMecha) return 'mecha_mismatch'
  if (scopes?.some((scope) => !keyScopes.includes(scope))) return 'insufficient_scope'
  return undefined
}
