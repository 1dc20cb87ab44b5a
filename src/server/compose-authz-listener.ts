/** The authz listener: `/v1/authz` on a server of its own, without a gateway credential. Whoever reaches its address may ask. */

import type { FastifyInstance } from 'fastify'
import type { Settings } from '../config.js'
import { takeTimes } from '../http/metrics.js'
import { ProblemSchema } from '../http/problems.js'
import { authzRoutes } from '../runtime/authz/routes.js'
import { decorateCallers } from '../runtime/gateway-auth/callers.js'
import { createSender } from '../runtime/verify/send.js'
import type { Verifier } from '../runtime/verify/verifier.js'
import { markPlane } from '../tracing/tracing.js'
import type { SharedDeps } from './shared-deps.js'
import { outsideOfRoutes } from './cors.js'
import { createListener } from './listener.js'
import { registerNotFound } from './not-found.js'

export async function composeAuthzListener({ app, logger, compilers, metrics, tracing }: SharedDeps, config: Settings, verifier: Verifier): Promise<FastifyInstance> {
  const listener = createListener(config, { logger, compilers, tracing, headersFor: outsideOfRoutes(undefined), isAuthzOnly: true })
  if (tracing) markPlane(listener, 'runtime')
  listener.addSchema(ProblemSchema)
  takeTimes(listener, metrics)
  registerNotFound(listener, metrics.recordUnknownRoute)
  decorateCallers(listener)
  const everybody = { id: null, org_id: config.AUTHZ_ORG ?? null }
  await listener.register(authzRoutes({ verifier, send: createSender(), unavailable: config.AUTHZ_UNAVAILABLE, everybody }))
  await listener.ready()
  // Both listeners stop at the same time. The requests that this one still answers need the database, which the app closes last.
  let closing: Promise<void> | undefined
  app.addHook('preClose', (done) => {
    closing = listener.close()
    done()
  })
  app.addHook('onClose', () => closing)
  return listener
}
