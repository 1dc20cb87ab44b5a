/** The contract: made from the routes' own schemas, so that it cannot say anything else than they do. */

import swagger from '@fastify/swagger'
import swaggerUi from '@fastify/swagger-ui'
import type { FastifyInstance } from 'fastify'

/** Must be registered before the routes that it describes. */
export async function registerOpenApi(app: FastifyInstance, version: string): Promise<void> {
  await app.register(swagger, {
    openapi: {
      openapi: '3.1.0',
      info: {
        title: 'mecha-keys',
        version,
        description: 'Issues, lists, rotates, revokes and verifies Mecha keys: the runtime credentials of named AI workers.',
        license: { name: 'Apache-2.0', identifier: 'Apache-2.0' },
      },
      tags: [
        { name: 'control', description: 'Operators issue and govern' },
        { name: 'runtime', description: 'Gateways verify' },
        { name: 'ops', description: 'Probes' },
      ],
      components: {
        securitySchemes: {
          operator: { type: 'http', scheme: 'bearer', bearerFormat: 'JWT', description: 'A token of a trusted issuer; its claims name the organization and the scopes' },
          gateway: { type: 'http', scheme: 'bearer', bearerFormat: 'mgw_…', description: 'A gateway credential' },
        },
      },
    },
    refResolver: { buildLocalReference: (json, _base, _fragment, i) => (typeof json.$id === 'string' ? json.$id : `schema-${i}`) },
  })
  await app.register(swaggerUi, { routePrefix: '/docs', uiConfig: { deepLinking: true } })
  app.get('/openapi.json', { schema: { hide: true } }, async () => app.swagger())
}
