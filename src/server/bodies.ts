/** How bodies are read: as JSON, and one that is empty as one that was left out, whatever its Content-Type says. */

import { errorCodes, type FastifyInstance } from 'fastify'

/**
 * Sets what a scope takes as a body. A name such as `__proto__` is left in what was read: the schema of a body, or who
 * keeps it, says what becomes of it.
 */
export function readBodies(app: FastifyInstance): void {
  const parse = app.getDefaultJsonParser('ignore', 'ignore')
  app.removeAllContentTypeParsers()
  app.addContentTypeParser('application/json', { parseAs: 'string' }, (request, body, done) => {
    if (body === '') done(null, undefined)
    else void parse(request, body as string, done)
  })
  // Many clients name a type for a body that they then leave out: curl names the one of forms.
  app.addContentTypeParser('*', { parseAs: 'buffer' }, (_request, body, done) => {
    if (body.length === 0) done(null, undefined)
    else done(new errorCodes.FST_ERR_CTP_INVALID_MEDIA_TYPE())
  })
}
