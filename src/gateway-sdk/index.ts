/**
 * The gateway SDK: `import { createVerifier } from 'mecha-keys/gateway'`. It knows the service by its HTTP interface
 * alone, and imports nothing of it.
 */

export { authenticateRequest, authenticateSignedRequest, authenticateUpgrade, keepVouched, presentedKey, type CloseReason, type SignedOptions, type UpgradeOptions } from './node-http.js'
export { isNonce, isSignatureOf, parseTimestamp, signRequest, type SignedRequest } from '../protocol/signature.js'
export type { SignatureRefusal, SignedRequestParts, SignedVerdict } from './signed.js'
export { StreamLost, VerifierUnavailable, type StreamLossReason, type UnavailableCode } from './errors.js'
export type { RefusalCode, Requirements as Demand } from '../protocol/verdict.js'
export type { Refused, Valid, Verdict } from './verdict.js'
export type { VerifierOptions } from './options.js'
export { createVerifier } from './verifier.js'
export type { Verifier, VerifierState } from './verifier-types.js'
export type { End, EndReason, WatchListener } from './watches.js'
