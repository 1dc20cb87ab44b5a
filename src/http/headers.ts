/** Headers that carry a credential, and how to let go of them. */

import type { IncomingMessage } from 'node:http'

export const SECRET_HEADERS = ['authorization', 'x-mecha-key', 'x-gateway-authorization', 'cookie', 'set-cookie']

/** Lets go of a request's credentials, for one that is going to be open for hours. Its other headers stay. */
export function dropCredentials(request: IncomingMessage): void {
  // Read before the raw ones go: Node.js makes them from those when they are first asked for.
  const { headers } = request
  for (const name of SECRET_HEADERS) delete headers[name]
  request.rawHeaders = []
  request.headersDistinct = {}
}
