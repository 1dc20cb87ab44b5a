/** What a proxy asks for beside the key, in the query of `/v1/authz`. */

import type { Requirements } from '../../protocol/verdict.js'

const NONE: Requirements = {}

/**
 * Reads `?scope=…&mecha=…`: scopes by repetition or separated by spaces, all of which the key must have. Other
 * parameters are ignored: some proxies leave those of the client's own request in place. What stands behind
 * `request=` is not read at all, for proxies that append what they were asked for.
 *
 * A requirement that is there and empty, or of two Mechas, is one that no key meets.
 */
export function requirementsOf(url: string): Requirements {
  const start = url.indexOf('?')
  if (start < 0) return NONE
  const query = new URLSearchParams(url.slice(start + 1).replace(/(^|&)request=.*$/s, ''))
  // `scopes` is what verify calls them: who writes that here must not have asked for nothing.
  const scopes = [...query.getAll('scope'), ...query.getAll('scopes')]
  const [mecha, ...others] = query.getAll('mecha')
  return {
    mecha: others.every((other) => other === mecha) ? mecha : '',
    scopes: scopes.flatMap((text) => text.trim().split(/ +/)),
  }
}
