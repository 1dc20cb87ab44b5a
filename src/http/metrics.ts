/** Prometheus metrics. Labels are of bounded kinds: never a key id, a Mecha or an organization. */

import type { FastifyInstance } from 'fastify'
import { collectDefaultMetrics, Counter, Gauge, Histogram, Registry } from 'prom-client'

export type Metrics = ReturnType<typeof createMetrics>

/** A registry of its own for each app, so that two apps in one process do not meet. */
export function createMetrics(options: { process: boolean }) {
  const registry = new Registry()
  const registers = [registry]
  if (options.process) collectDefaultMetrics({ register: registry })
  return {
    registry,
    requests: new Histogram({
      name: 'mecha_keys_http_request_seconds',
      help: 'Time from a request to its response, by route pattern',
      labelNames: ['method', 'route', 'status'],
      buckets: [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1, 5],
      registers,
    }),
    verifications: new Counter({
      name: 'mecha_keys_verifications_total',
      help: 'Answers of verify and of gateway authentication: valid, or why not',
      labelNames: ['credential', 'result'],
      registers,
    }),
    queries: new Counter({
      name: 'mecha_keys_database_queries_total',
      help: 'Statements sent to PostgreSQL',
      labelNames: ['plane'],
      registers,
    }),
    argon2: new Histogram({
      name: 'mecha_keys_argon2_seconds',
      help: 'Time for one argon2 computation, waiting for a thread included',
      labelNames: ['operation'],
      buckets: [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5],
      registers,
    }),
    ready: new Gauge({
      name: 'mecha_keys_ready',
      help: '1 when the last readiness check passed',
      registers,
    }),
  }
}

export function registerMetrics(app: FastifyInstance, { registry, requests }: Metrics): void {
  app.addHook('onResponse', async (request, reply) => {
    const route = request.routeOptions.url ?? 'none'
    requests.observe({ method: request.method, route, status: reply.statusCode }, reply.elapsedTime / 1000)
  })
  app.get('/metrics', { schema: { hide: true } }, async (_request, reply) =>
    reply.type(registry.contentType).send(await registry.metrics()),
  )
}
