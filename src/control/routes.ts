/** The control plane: operators issue and govern keys and gateways, and read the audit trail. */

import type { FastifyPluginAsyncTypebox } from '@fastify/type-provider-typebox'
import { boundRequests } from '../http/concurrency-limit.js'
import { refuseSecretsAndUnstorable } from '../http/validation.js'
import { eventRoutes } from './audit/routes.js'
import type { ControlDeps } from './deps.js'
import { gatewayRoutes } from './gateways/routes.js'
import { keyRoutes } from './keys/routes.js'
import type { OperatorAuthenticator } from './operators/authenticate.js'
import { requireOperator } from './operators/require-operator.js'
import { Receipts } from './receipts/receipts.js'

export function controlPlane(deps: ControlDeps, authenticate: OperatorAuthenticator): FastifyPluginAsyncTypebox {
  return async (app) => {
    boundRequests(app, deps.config.QUEUE_SIZE)
    requireOperator(app, authenticate)
    refuseSecretsAndUnstorable(app)
    const receipts = new Receipts(deps.db, deps.config.REVOCATION_MAX_STALENESS * 1000)
    await app.register(keyRoutes(deps, receipts))
    await app.register(gatewayRoutes(deps, receipts))
    await app.register(eventRoutes(deps))
  }
}
