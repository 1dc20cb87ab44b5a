/** The hook before every route of the control plane: who calls, and whether their token has the scope of the route. */

import type { FastifyInstance } from 'fastify'
import { Problem } from '../../errors.js'
import { challenge } from '../../http/challenge.js'
import type { Operator, OperatorAuthenticator } from './authenticate.js'
import type { Scope } from './scopes.js'

declare module 'fastify' {
  interface FastifyRequest {
    operator: Operator
  }
  interface FastifyContextConfig {
    /** The scope that an operator's token needs for a route of the control plane. */
    scope?: Scope
  }
}

/** Every route names the scope that it needs: with one that names none, the service does not start. */
export function requireOperator(app: FastifyInstance, authenticate: OperatorAuthenticator): void {
  app.decorateRequest('operator')
  app.addHook('onRoute', ({ url, config, method, schema }) => {
    if (!config?.scope && method !== 'OPTIONS') throw new Error(`${String(method)} ${url} names no scope`)
    if (schema && config?.scope) Object.assign(schema, { 'security': [{ operator: [] }], 'x-scope': config.scope })
  })
  app.addHook('onRequest', async (request, reply) => {
    reply.header('cache-control', 'no-store')
    request.operator = await authenticate(request.headers.authorization)
    const scope = request.routeOptions.config.scope!
    if (request.operator.scopes.has(scope)) return
    throw new Problem('insufficient_scope', `The token lacks the scope ${scope}.`, {
      headers: { 'www-authenticate': challenge({ error: 'insufficient_scope', scope }) },
    })
  })
}
