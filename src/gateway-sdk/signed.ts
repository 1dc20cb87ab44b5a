/**
 * Signed requests: that the holder of the key made exactly this request, a moment ago, and for the first time.
 *
 * What costs least is looked at first, and the nonce last: it is used up by a request that is good in all else, and by no
 * other.
 */

import type { IncomingHttpHeaders } from 'node:http'
import { isNonce, isSignatureOf, parseTimestamp } from '../protocol/signature.js'
import type { Requirements, RefusalCode } from '../protocol/verdict.js'
import { VerifierUnavailable } from './errors.js'
import type { Valid, Verdict } from './verdict.js'

export interface SignedRequestParts {
  /** As `node:http` has them: `x-mecha-key`, `x-request-timestamp`, `x-nonce` and `x-signature`. */
  readonly headers: IncomingHttpHeaders
  /** The body as it came, to the byte and before anything was made of it; empty where there is none. */
  readonly body: Uint8Array
}

export type SignatureRefusal =
  /** A header is missing, or not what it must be. */
  | 'unsigned'
  /** The timestamp is further from the service's clock than is tolerated. */
  | 'untimely'
  /** It was made with another key, or for another request. */
  | 'wrong_signature'
  /** This request, or another one with its nonce, was let pass before, here or on another gateway. */
  | 'nonce_reused'

export type SignedVerdict = Valid | { readonly valid: false; readonly code: RefusalCode | SignatureRefusal }

export interface SignedDeps {
  readonly verify: (key: string, requirements: Requirements) => Verdict | Promise<Verdict>
  /** Resolves to `false` when the nonce has been used before. */
  readonly useNonce: (keyId: string, nonce: string, expiresAt: Date) => Promise<boolean>
  /** The service's clock, in milliseconds. */
  readonly now: () => number
  /** Whether a clock of this machine has jumped since the service's was known. */
  readonly isClockInDoubt: () => boolean
  readonly clockToleranceMs: number
}

/** Most that any gateway may tolerate. */
export const MAX_TOLERANCE_MS = 400_000
/** How long a nonce is kept after its request's time: longer than any gateway accepts it, whatever this one tolerates. Their clocks may be a little apart as well. */
const NONCE_TTL_MS = MAX_TOLERANCE_MS + 60_000

export function createSignedVerifier({ verify, useNonce, now, isClockInDoubt, clockToleranceMs }: SignedDeps) {
  return async ({ headers, body }: SignedRequestParts, requirements: Requirements = {}): Promise<SignedVerdict> => {
    const [key, timestamp, nonce, signature] = ['x-mecha-key', 'x-request-timestamp', 'x-nonce', 'x-signature'].map((name) => headers[name])
    const time = typeof timestamp === 'string' ? parseTimestamp(timestamp) : undefined
    if (typeof key !== 'string' || typeof timestamp !== 'string' || typeof nonce !== 'string' || typeof signature !== 'string') return refused('unsigned')
    if (time === undefined || !isNonce(nonce)) return refused('unsigned')
    if (Math.abs(now() - time) > clockToleranceMs) {
      if (isClockInDoubt()) throw new VerifierUnavailable('service_unavailable', 'a clock of this machine has jumped')
      return refused('untimely')
    }
    const verdict = await verify(key, requirements)
    if (!verdict.valid) return verdict
    if (!isSignatureOf(signature, { key, body, nonce, timestamp })) return refused('wrong_signature')
    const isFirst = await useNonce(verdict.key_id, nonce, new Date(time + NONCE_TTL_MS))
    return isFirst ? verdict : refused('nonce_reused')
  }
}

function refused(code: SignatureRefusal): SignedVerdict {
  return { valid: false, code }
}
