/** Prometheus metrics. Labels are of bounded kinds: never a key id, a Mecha or an organization. */

import type { FastifyInstance, FastifyReply, onResponseHookHandler } from 'fastify'
import { collectDefaultMetrics, Counter, Gauge, Histogram, Registry, type Metric } from 'prom-client'
import { RequestTimes } from './request-times.js'

export type Metrics = ReturnType<typeof createMetrics>

/** A registry of its own for each app, so that two apps in one process do not meet. */
export function createMetrics(options: { process: boolean }) {
  const registry = new Registry()
  const registers = [registry]
  if (options.process) collectDefaultMetrics({ register: registry })
  const requests = new RequestTimes()
  registry.registerMetric(requests as unknown as Metric)
  const recordUnknown = requests.recorder('none', 'none')
  return {
    registry,
    requests,
    /** Records a request that no route is there for, when its response ends. */
    recordUnknownRoute: (reply: FastifyReply) => void reply.raw.once('close', () => recordUnknown(reply.statusCode, reply.elapsedTime / 1000)),
    verified: countVerifications(registers),
    queries: new Counter({
      name: 'mecha_keys_database_queries_total',
      help: 'Statements sent to PostgreSQL',
      labelNames: ['plane'],
      registers,
    }),
    argon2: new Histogram({
      name: 'mecha_keys_argon2_seconds',
      help: 'Time for one argon2 computation, waiting in the queue included',
      labelNames: ['operation'],
      buckets: [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5],
      registers,
    }),
    ready: new Gauge({
      name: 'mecha_keys_ready',
      help: '1 when the last readiness check passed',
      registers,
    }),
    /** A gauge that is read when it is asked for. */
    watch(name: string, help: string, read: () => number) {
      new Gauge({ name, help, registers, collect() { this.set(read()) } })
    },
  }
}

/** Counted in plain objects, and put into labels when somebody looks: it happens twice for each verify. */
function countVerifications(registers: Registry[]): (credential: string, result: string) => void {
  const counts: Record<string, Record<string, number>> = {}
  new Counter({
    name: 'mecha_keys_verifications_total',
    help: 'Answers of verify and of gateway authentication: valid, or why not',
    labelNames: ['credential', 'result'],
    registers,
    collect() {
      this.reset()
      for (const [credential, results] of Object.entries(counts))
        for (const [result, count] of Object.entries(results)) this.inc({ credential, result }, count)
    },
  })
  return (credential, result) => {
    const results = (counts[credential] ??= {})
    results[result] = (results[result] ?? 0) + 1
  }
}

/** Must be called before the routes whose times are taken are registered. */
export function takeTimes(app: FastifyInstance, { requests }: Metrics): void {
  // Each route has a hook of its own, which knows what route it is: to ask a request takes longer than to record it.
  app.addHook('onRoute', (route) => {
    const recorders = Object.fromEntries([route.method].flat().map((method) => [method, requests.recorder(method, route.url)]))
    const record: onResponseHookHandler = (request, reply, done) => {
      recorders[request.method]?.(reply.statusCode, reply.elapsedTime / 1000)
      done()
    }
    route.onResponse = [record, ...[route.onResponse ?? []].flat()]
  })
}

/** Must be registered before the routes whose times are taken. */
export function registerMetrics(app: FastifyInstance, metrics: Metrics): void {
  takeTimes(app, metrics)
  const { registry } = metrics
  app.get('/metrics', { schema: { hide: true } }, async (_request, reply) =>
    reply.type(registry.contentType).send(await registry.metrics()),
  )
}
