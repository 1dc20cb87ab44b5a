/** Request headers: which carry a credential, how to remove those, and which media type the caller prefers. */

import type { IncomingMessage } from 'node:http'
import type { FastifyRequest } from 'fastify'
import Negotiator from 'negotiator'

export const SECRET_HEADERS = ['authorization', 'x-mecha-key', 'x-gateway-authorization', 'cookie', 'set-cookie']

/** Removes the credentials from the headers of a request that will stay open for hours. The other headers stay. */
export function dropCredentials(request: IncomingMessage): void {
  // `headers` is read before `rawHeaders` is emptied: Node.js builds the one from the other when it is first asked for.
  const { headers } = request
  for (const name of SECRET_HEADERS) delete headers[name]
  request.rawHeaders = []
  request.headersDistinct = {}
}

/** Which of some media types the caller likes best (RFC 9110, section 12.5.1), the first where it has no say; `undefined` where it takes none of them. */
export function preferredType({ raw }: FastifyRequest, types: string[]): string | undefined {
  return new Negotiator(raw).mediaType(types)
}
