/** Headers that carry a credential, how to let go of them, and what a caller would rather have. */

import type { IncomingMessage } from 'node:http'
import type { FastifyRequest } from 'fastify'
import Negotiator from 'negotiator'

export const SECRET_HEADERS = ['authorization', 'x-mecha-key', 'x-gateway-authorization', 'cookie', 'set-cookie']

/** Lets go of a request's credentials, for one that is going to be open for hours. Its other headers stay. */
export function dropCredentials(request: IncomingMessage): void {
  // Read before the raw ones go: Node.js makes them from those when they are first asked for.
  const { headers } = request
  for (const name of SECRET_HEADERS) delete headers[name]
  request.rawHeaders = []
  request.headersDistinct = {}
}

/** Which of some media types the caller likes best (RFC 9110, section 12.5.1), the first where it has no say; `undefined` where it takes none of them. */
export function preferredType({ raw }: FastifyRequest, types: string[]): string | undefined {
  return new Negotiator(raw).mediaType(types)
}
