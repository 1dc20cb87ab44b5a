/** Most requests at once, for routes whose time is spent waiting for the database. */

import type { ServerResponse } from 'node:http'
import type { FastifyInstance } from 'fastify'
import { overloaded } from '../errors.js'

/** Refuses what is more than may be under way at once in a scope, before anything else is done for it. */
export function boundRequests(app: FastifyInstance, most: number): void {
  const underWay = new Set<ServerResponse>()
  app.addHook('onRequest', (_request, { raw }, done) => {
    if (underWay.size >= most) throw overloaded()
    underWay.add(raw)
    raw.once('close', () => underWay.delete(raw))
    done()
  })
  // Not when the answer has been delivered: a client that does not read would hold its place for as long as it likes.
  app.addHook('onSend', (_request, { raw }, payload, done) => {
    underWay.delete(raw)
    done(null, payload)
  })
}
