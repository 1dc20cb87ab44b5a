/** Most requests at once, for routes whose time is spent waiting for the database. */

import type { ServerResponse } from 'node:http'
import type { FastifyInstance } from 'fastify'
import { overloaded } from '../errors.js'

/** Limits how many requests of a scope run at once. One too many is refused before anything else is done for it. */
export function boundRequests(app: FastifyInstance, most: number): void {
  const underWay = new Set<ServerResponse>()
  app.addHook('onRequest', (_request, { raw }, done) => {
    if (underWay.size >= most) throw overloaded()
    underWay.add(raw)
    raw.once('close', () => underWay.delete(raw))
    done()
  })
  // Released when the answer is sent and not when it is delivered: a client that does not read could occupy its place for as long as it likes.
  app.addHook('onSend', (_request, { raw }, payload, done) => {
    underWay.delete(raw)
    done(null, payload)
  })
}
