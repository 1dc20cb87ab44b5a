/** Prometheus metrics. Labels are of bounded kinds: never a key id, a Mecha or an organization. */

import type { FastifyInstance, FastifyReply, onResponseHookHandler } from 'fastify'
import { collectDefaultMetrics, Counter, Gauge, Histogram, Registry, type Metric } from 'prom-client'
import { VERSION } from '../package-root.js'
import { RequestTimes } from './request-times.js'

export type Metrics = ReturnType<typeof createMetrics>

/** A value, or one for each of some labels; nothing while there is nothing to say. */
type Reading = number | undefined | readonly { readonly labels: Readonly<Record<string, string>>; readonly value: number }[]

/** A registry of its own for each app, so that two apps in one process do not meet. */
export function createMetrics(options: { process: boolean }) {
  const registry = new Registry()
  const registers = [registry]
  if (options.process) collectDefaultMetrics({ register: registry })
  const requests = new RequestTimes()
  registry.registerMetric(requests as unknown as Metric)
  const recordUnknown = requests.recorder('none', 'none')

  /** A gauge that is read when somebody looks. */
  function watch(name: string, help: string, read: () => Reading, labelNames: string[] = []): void {
    new Gauge({
      name, help, labelNames, registers,
      collect() {
        this.reset()
        if (labelNames.length === 0) this.remove()
        for (const { labels, value } of listed(read())) this.set(labels, value)
      },
    })
  }

  /** A counter that is kept in plain numbers, and read when somebody looks: what every request passes has no time for more. */
  function count(name: string, help: string, read: () => Reading, labelNames: string[] = []): void {
    new Counter({
      name, help, labelNames, registers,
      collect() {
        this.reset()
        for (const { labels, value } of listed(read())) this.inc(labels, value)
      },
    })
  }

  const verified: Record<string, Record<string, number>> = {}
  count('mecha_keys_verifications_total', 'Answers of verify and of gateway authentication: valid, or why not',
    () => Object.entries(verified).flatMap(([credential, results]) => Object.entries(results).map(([result, value]) => ({ labels: { credential, result }, value }))), ['credential', 'result'])
  const lookups = { hit: 0, miss: 0 }
  count('mecha_keys_cache_lookups_total', 'Keys and credentials that were answered for from memory (hit), and those that the database was asked for (miss)',
    () => Object.entries(lookups).map(([result, value]) => ({ labels: { result }, value })), ['result'])
  const refused: Record<string, number> = {}
  count('mecha_keys_refusals_total', 'Requests that were refused, by the code of the problem; those that were shed are overloaded',
    () => Object.entries(refused).map(([code, value]) => ({ labels: { code }, value })), ['code'])
  watch('mecha_keys_build_info', 'Always 1', () => [{ labels: { version: VERSION, node: process.version }, value: 1 }], ['version', 'node'])

  function countRefusal({ refusal }: FastifyReply): void {
    if (refusal) refused[refusal.code] = (refused[refusal.code] ?? 0) + 1
  }

  return {
    registry, requests, watch, count, lookups, countRefusal,
    /** Records a request that no route is there for, when its response ends. */
    recordUnknownRoute: (reply: FastifyReply) =>
      void reply.raw.once('close', () => {
        recordUnknown(reply.statusCode, reply.elapsedTime / 1000)
        countRefusal(reply)
      }),
    verified(credential: string, result: string): void {
      const results = (verified[credential] ??= {})
      results[result] = (results[result] ?? 0) + 1
    },
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
    propagation: new Histogram({
      name: 'mecha_keys_propagation_seconds',
      help: 'How long the answer to a change waited for the replicas, and whether all had applied it by then',
      labelNames: ['complete'],
      buckets: [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2, 5, 10],
      registers,
    }),
    ready: new Gauge({
      name: 'mecha_keys_ready',
      help: '1 when the last readiness check passed',
      registers,
    }),
  }
}

function listed(reading: Reading): Exclude<Reading, number | undefined> {
  if (reading === undefined) return []
  return typeof reading === 'number' ? [{ labels: {}, value: reading }] : reading
}

/** Must be called before the routes whose times are taken are registered. */
export function takeTimes(app: FastifyInstance, { requests, countRefusal }: Metrics): void {
  // Each route has a hook of its own, which knows what route it is: to ask a request takes longer than to record it.
  app.addHook('onRoute', (route) => {
    const recorders = Object.fromEntries([route.method].flat().map((method) => [method, requests.recorder(method, route.url)]))
    const record: onResponseHookHandler = (request, reply, done) => {
      recorders[request.method]?.(reply.statusCode, reply.elapsedTime / 1000)
      if (reply.statusCode >= 400) countRefusal(reply)
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
