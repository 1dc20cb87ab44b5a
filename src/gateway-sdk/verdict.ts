/** What a gateway learns of a key. The shapes are those of the service's `POST /v1/verify`. */

export type RefusalCode = 'malformed' | 'unknown' | 'revoked' | 'expired' | 'disabled' | 'mecha_mismatch' | 'insufficient_scope'

/** A good key: whose it is, and what it may do. Frozen, and the same object for each verify of a key that is held. */
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

/** What is asked beyond the key itself. */
export interface Demand {
  /** The Mecha that the key must be of: `name^crew`. */
  readonly mecha?: string | undefined
  /** Scopes that the key must have, all of them. */
  readonly scopes?: readonly string[] | undefined
}

/** Holds a verdict against a demand, as the service does: what the key is comes before what was asked of it. */
export function judge(verdict: Verdict, { mecha, scopes }: Demand): Verdict {
  if (!verdict.valid) return verdict
  if (mecha !== undefined && mecha !== verdict.mecha.handle) return { valid: false, code: 'mecha_mismatch' }
  if (scopes?.some((scope) => !verdict.scopes.includes(scope))) return { valid: false, code: 'insufficient_scope' }
  return verdict
}

export type UnavailableCode =
  /** The service did not answer in time, or not at all. */
  | 'service_unreachable'
  /** The service answered that it cannot say, or something that is no answer. */
  | 'service_unavailable'
  /** The service does not take the gateway's own credential. */
  | 'credential_refused'
  /** More keys wait for the service than may. */
  | 'overloaded'
  /** The verifier has been closed. */
  | 'closed'

/**
 * Nobody can say now whether the key is good: to be answered with 503, and never as if it were not good.
 * Its message holds no key and no credential.
 */
export class VerifierUnavailable extends Error {
  override readonly name = 'VerifierUnavailable'
  constructor(
    readonly code: UnavailableCode,
    message: string,
    options?: ErrorOptions,
  ) {
    super(message, options)
  }
}

export type StreamLossReason =
  /** The service cannot be connected to. */
  | 'unreachable'
  /** The service does not take the gateway's own credential. */
  | 'credential_refused'
  /** The service answered that it cannot tell of changes now, or something that is no stream. */
  | 'unavailable'
  /** The service ended the stream: it is drained, has lost its own feed, or has changed this gateway's credential. */
  | 'ended'
  /** The connection broke. */
  | 'broken'
  /** Nothing was confirmed for half of the bound. */
  | 'silent'
  /** What came was not understood. */
  | 'not_understood'
  /** One of this process's clocks jumped: the machine was suspended, or its clock was set. */
  | 'clock_jumped'
  /** An answer came from another history of the database than the stream. */
  | 'other_history'

/** The stream of changes was lost, or could not be had: why. There is no key and no credential in it. */
export class StreamLost extends VerifierUnavailable {
  constructor(
    readonly reason: StreamLossReason,
    code: UnavailableCode,
    message: string,
    options?: ErrorOptions,
  ) {
    super(code, message, options)
  }
}
