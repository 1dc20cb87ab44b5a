/** Most requests at once, for routes whose time is spent waiting for the database. */

import type { FastifyInstance } from 'fastify'
import { overloaded } from '../errors.js'

/** Refuses what is more than may be under way at once in a scope, before anything else is done for it. */
export function boundRequests(app: FastifyInstance, most: number): void {
  let underWay = 0
  app.addHook('onRequest', (_request, reply, done) => {
    if (underWay >= most) throw overloaded()
    underWay++
    reply.raw.once('close', () => underWay--)
    done()
  })
}
