/** The key that a client's request presents to a proxy, of which there may be one. */

import type { IncomingMessage } from 'node:http'
import type { Problem } from '../../errors.js'
import { bearerToken } from '../../protocol/bearer.js'
import { containsToken } from '../../credentials/token.js'
import { NO_KEY, TWO_KEYS } from './refusals.js'

/** The key in either header. Beside one in a header of its own, `Authorization` is the application's. */
export function keyFrom(request: IncomingMessage): string | Problem {
  const { authorization = '' } = request.headers
  const own = textOf(request, 'x-mecha-key')
  if (own === '') return hasSecondAuthorization(request) ? TWO_KEYS : (bearerToken(authorization) ?? NO_KEY)
  // Node.js joins a header that is there more than once by commas, and no key has one.
  if (own.includes(',')) return TWO_KEYS
  // The proxy removes the header that counts. A second key in the other one would reach the application.
  return authorizations(request).some(containsToken) ? TWO_KEYS : own
}

/** One header's value, empty where there is none. */
export function textOf({ headers }: IncomingMessage, name: 'x-mecha-key' | 'x-gateway-authorization'): string {
  return (headers[name] as string | undefined) ?? ''
}

/** Every value of `Authorization`: of several, Node.js knows the first alone, and an application may be sent them all. */
function authorizations({ headers, rawHeaders }: IncomingMessage): readonly string[] {
  return headers.authorization === undefined ? [] : rawHeaders.filter((_, i) => i % 2 === 1 && isAuthorization(rawHeaders[i - 1]!))
}

function hasSecondAuthorization({ headers, rawHeaders }: IncomingMessage): boolean {
  if (headers.authorization === undefined) return false
  let count = 0
  for (let i = 0; i < rawHeaders.length; i += 2) if (isAuthorization(rawHeaders[i]!)) count++
  return count > 1
}

function isAuthorization(name: string): boolean {
  return name.length === 13 && name.toLowerCase() === 'authorization'
}
