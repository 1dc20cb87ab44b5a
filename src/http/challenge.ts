/** The service's own challenge, which a 401 and some of the 403 answer with. */

import { bearerChallenge } from '../protocol/bearer.js'

/** A value of `WWW-Authenticate` (RFC 6750, section 3). */
export function challenge(parameters?: { readonly error: 'invalid_token' | 'insufficient_scope'; readonly error_description?: string; readonly scope?: string }): string {
  return bearerChallenge('mecha-keys', parameters)
}
