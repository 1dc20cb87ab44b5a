/**
 * The composition root: what all of the service shares is made here and handed to each plane. It reads from top to bottom in the order
 * in which things begin; they end in the opposite one.
 */

import type { FastifyInstance } from 'fastify'
import type { DestinationStream } from 'pino'
import type { Clock } from '../clock.js'
import { requireRoots, requireServing, sendsTraces, type Settings } from '../config.js'
import * as controlSchemas from '../control/schemas.js'
import { createHasher } from '../credentials/hash-queue.js'
import { ConfigError } from '../errors.js'
import { createMetrics, registerMetrics } from '../http/metrics.js'
import { OAuthErrorSchema } from '../http/oauth-errors.js'
import { answerProblem, loggedProblem, ProblemSchema } from '../http/problems.js'
import { createCompilers, type Compilers } from '../http/validation.js'
import * as runtimeSchemas from '../runtime/schemas.js'
import { hashingObserver } from '../tracing/tracing.js'
import { readBodies } from './bodies.js'
import { Checks } from './checks.js'
import { composeAuthzListener } from './compose-authz-listener.js'
import { composeControl } from './compose-control.js'
import { composeRuntime } from './compose-runtime.js'
import { outsideOfRoutes } from './cors.js'
import { DatabasePools } from './database-pools.js'
import { registerHealth } from './health.js'
import { createListener } from './listener.js'
import { registerNotFound } from './not-found.js'
import { registerContract, registerErrorPages } from './pages.js'
import { createLogger, secretFields } from './request-log.js'
import type { SharedDeps } from './shared-deps.js'
import { openTracing, stopTracingOnClose } from './traces.js'

export interface AppDeps {
  /** Where log lines go; standard output otherwise. */
  readonly logDestination?: DestinationStream
  /** Whether metrics of the process itself are kept; one app of a process does. */
  readonly processMetrics?: boolean
  /** Measures how old a read or a confirmation is; the system's clocks otherwise. */
  readonly clock?: Clock
  /** Whether a setting that leads to something wrong, such as another database, is found before anything begins. */
  readonly refusesMistakes?: boolean
  /** Compiles schemas. Several apps in one process may share one; each has its own otherwise. */
  readonly compilers?: Compilers
  /** Sees each route as it is added. The contract is made of them. */
  readonly describeRoutes?: (app: FastifyInstance) => Promise<void>
}

export interface App {
  readonly app: FastifyInstance
  /** The authz listener, where `AUTHZ_LISTEN` is set. It closes with `app`. */
  readonly authz: FastifyInstance | undefined
  /** From now on `/readyz` says no. */
  readonly startDraining: () => void
}

/** Fields of any request or answer that carry a secret, by the schemas' own marks. */
export const SECRET_FIELDS = secretFields([...Object.values(controlSchemas), ...Object.values(runtimeSchemas)])

/**
 * Puts the service together. Nothing listens yet; `close()` lets go of everything.
 *
 * @throws ConfigError when a setting that serving needs is missing, or leads to what cannot be right
 */
export async function buildApp(config: Settings, deps: AppDeps = {}): Promise<App> {
  requireServing(config)
  const roots = requireRoots(config)
  const metrics = createMetrics({ process: deps.processMetrics ?? false })
  const tracing = sendsTraces(config) ? await openTracing(config, (error) => logExport(error)) : undefined
  const logger = createLogger({ level: config.LOG_LEVEL, secrets: SECRET_FIELDS, fields: tracing && (() => tracing.logFields()), ...(deps.logDestination && { destination: deps.logDestination }) })
  const compilers = deps.compilers ?? createCompilers()
  const headersFor = outsideOfRoutes(config.PLANES === 'runtime' ? undefined : config.CORS_ORIGINS)
  const app = createListener(config, { logger, compilers, tracing, headersFor })
  if (tracing) stopTracingOnClose(app, tracing, config)
  const checks = new Checks()
  const pools = new DatabasePools({ app, config, roots, metrics, tracing, checks })
  const hasher = createHasher({
    profile: config.HASH_PROFILE,
    version: () => pools.hashVersion(),
    queueSize: config.QUEUE_SIZE,
    onDone: (operation, seconds) => metrics.argon2.observe({ operation }, seconds),
    observe: tracing && hashingObserver(tracing),
  })
  metrics.watch('mecha_keys_argon2_waiting', 'argon2 computations that wait for a thread', hasher.waiting)
  let isDraining = false
  const shared: SharedDeps = { app, logger, compilers, roots, hasher, metrics, tracing, checks, pools, isDraining: () => isDraining }

  for (const schema of [ProblemSchema, OAuthErrorSchema, controlSchemas.KeySchema, controlSchemas.GatewaySchema, controlSchemas.EventSchema]) app.addSchema(schema)
  readBodies(app)
  registerNotFound(app, (reply) => {
    metrics.recordUnknownRoute(reply)
    void reply.headers(headersFor(reply.request))
  })
  registerMetrics(app, metrics)
  app.setErrorHandler((error, request, reply) => answerProblem(reply, loggedProblem(error, request)))
  await deps.describeRoutes?.(app)
  registerContract(app, config.PLANES)
  registerErrorPages(app)

  if (config.PLANES !== 'runtime') await composeControl(shared, config)
  const runtime = config.PLANES === 'control' ? undefined : await composeRuntime(shared, config, deps.clock)
  const authz = runtime && config.AUTHZ_LISTEN ? await composeAuthzListener(shared, config, runtime.verifier) : undefined

  registerHealth(app, { checks: checks.ofReadiness, isDraining: () => isDraining, onReadiness: (ready) => metrics.ready.set(ready ? 1 : 0) })
  // So far the service has begun nothing but its database pools.
  if (deps.refusesMistakes) await refuseMistakes()
  await app.ready()
  // Looked at once for the log, since nobody may be asking /readyz yet.
  if (deps.refusesMistakes) void checks.ofReadiness['root_secrets']!()
  return { app, authz, startDraining }

  function logExport(error: Error | undefined): void {
    if (error) app.log.warn({ err: error }, 'traces could not be sent, and are lost; nothing else is')
    else app.log.info('traces are sent again')
  }

  async function refuseMistakes(): Promise<void> {
    const mistake = await checks.findMistake()
    if (mistake === undefined) return
    await app.close()
    throw new ConfigError(mistake)
  }

  function startDraining(): void {
    isDraining = true
    runtime?.streams.end()
  }
}
