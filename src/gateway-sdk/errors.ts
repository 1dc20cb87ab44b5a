/** What the SDK throws when nobody can say whether a key is good, and why there is no stream of changes. */

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
