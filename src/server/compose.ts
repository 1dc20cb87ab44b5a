/** The composition root: every part of the service by name, in the order in which it is put together. */

import { randomUUID } from 'node:crypto'
import type { AddressInfo } from 'node:net'
import { setTimeout as sleep } from 'node:timers/promises'
import type { FastifyInstance } from 'fastify'
import type { Kysely } from 'kysely'
import type { DestinationStream, Logger } from 'pino'
import { createHasher } from '../credentials/hash-queue.js'
import { operatorAuthenticator } from '../control/operators/authenticate.js'
import { issuerMistake } from '../control/operators/oidc-issuer.js'
import { databaseSetting, preparesStatements, requireRoots, requireServing, sendsTraces, type DatabaseUrl, type Settings } from '../config.js'
import { controlPlane } from '../control/routes.js'
import * as controlSchemas from '../control/schemas.js'
import { EventSchema, GatewaySchema, KeySchema } from '../control/schemas.js'
import { watchInventory } from '../control/keys/inventory.js'
import { missingRootSecret } from '../control/keys/root-secrets.js'
import { SigningKeyMaintenance } from '../control/signing-keys/maintenance.js'
import { hashAlike } from '../db/followers.js'
import { hashVersion } from '../db/hash-version.js'
import type { Plane } from '../db/logins.js'
import { openPool, type OpenPool } from '../db/pool.js'
import { databaseMistake, databaseTrouble } from '../db/readiness.js'
import type { Database } from '../db/tables.js'
import { ConfigError } from '../errors.js'
import { readBodies } from './bodies.js'
import { allowOrigins, outsideOfRoutes } from './cors.js'
import { registerHealth, untilRight, type ReadinessCheck } from './health.js'
import { createLogger, secretFields } from './request-log.js'
import { createMetrics, registerMetrics, takeTimes } from '../http/metrics.js'
import { registerNotFound } from './not-found.js'
import { OAuthErrorSchema } from '../http/oauth-errors.js'
import { registerContract, registerErrorPages } from './pages.js'
import { answerProblem, loggedProblem, ProblemSchema } from '../http/problems.js'
import { CallCounts } from '../http/rate-limit.js'
import { createServer, type ServerOptions } from './http-server.js'
import { createCompilers, type Compilers } from '../http/validation.js'
import { costNumber } from '../credentials/hash.js'
import { VERSION } from '../package-root.js'
import { asRefusal, authzRoutes, isForAuthz, withoutSubPath } from '../runtime/authz/routes.js'
import { CredentialCache } from '../runtime/verify/credential-cache.js'
import { decorateCallers } from '../runtime/gateway-auth/callers.js'
import { Clock } from '../clock.js'
import { Feed } from '../runtime/changes/feed.js'
import { Keyring } from '../runtime/oauth/keyring.js'
import type { OAuthParts } from '../runtime/oauth/deps.js'
import { StatusPlaces } from '../runtime/oauth/status-list-index.js'
import { StatusList } from '../runtime/oauth/status-list.js'
import { Statuses } from '../runtime/oauth/statuses.js'
import { findSigningKeys, findStatusChanges, findStatuses, findStatusPlace } from '../runtime/oauth/store.js'
import { holdToOneHistory, type OfOneHistory } from '../runtime/changes/one-history.js'
import { Revalidation } from '../runtime/revalidate/revalidation.js'
import { Fence } from '../runtime/verify/fence.js'
import { FirstUses } from '../runtime/verify/first-use.js'
import { HashRenewal } from '../runtime/verify/hash-renewal.js'
import { RowLoader } from '../runtime/verify/row-loader.js'
import { SecretProver } from '../runtime/verify/secret-prover.js'
import { runtimePlane } from '../runtime/routes.js'
import * as runtimeSchemas from '../runtime/schemas.js'
import { createSender } from '../runtime/verify/send.js'
import { findChanged, type HeldVersion } from '../runtime/revalidate/store.js'
import { findCredentials } from '../runtime/verify/store.js'
import { sweepChanges } from '../runtime/changes/sweep.js'
import { inSlices, piecesOf } from '../runtime/changes/slices.js'
import { ChangeStreams } from '../runtime/changes/sse.js'
import { recordRefusals, recordUses } from '../runtime/usage/store.js'
import { UsageRecorder } from '../runtime/usage/recorder.js'
import { Verifier } from '../runtime/verify/verifier.js'
import { hashingObserver, markPlane, statementWork, type Tracing } from '../tracing/tracing.js'

export interface AppParts {
  /** Where log lines go; standard output otherwise. */
  readonly logDestination?: DestinationStream
  /** Whether metrics of the process itself are kept; one app of a process does. */
  readonly processMetrics?: boolean
  /** What the age of things is told by; the system's clocks otherwise. */
  readonly clock?: Clock
  /** Whether what settings lead to is looked at before anything begins. */
  readonly refusesMistakes?: boolean
  /** What compiles schemas, for who has many apps in a process; each compiles its own otherwise. */
  readonly compilers?: Compilers
  /** What reads the routes as they are added: the contract is made of them. */
  readonly describeRoutes?: (app: FastifyInstance) => Promise<void>
}

/** What keeps in memory what was read of keys, and is told when they change. */
interface Follower {
  /** These keys (UUIDs) changed. */
  invalidate(ids: readonly string[]): void
  /** Any key may have changed. */
  invalidateAll(): void
}

export interface App {
  readonly app: FastifyInstance
  /** What is served on `AUTHZ_LISTEN`, where that is set. Ends with `app`. */
  readonly authz: FastifyInstance | undefined
  /** From now on `/readyz` says no. */
  readonly startDraining: () => void
}

/** How long changes are kept for a replica that is cut off; one that was away for longer starts anew. */
const FEED_RETENTION_MS = 3_600_000
/** Longest time between two polls of the feed while no gateway follows: a quarter of the default bound. */
const QUIET_POLL_MS = 2500
/** Statements of the cold path under way at once. More would only be smaller. */
const COLD_STATEMENTS = 2
/** Changes that are applied at a stretch: some milliseconds. */
const CHANGES_PER_SLICE = 1000
/** How soon a replica notices a new signing key. */
const SIGNING_KEYS_RELOAD_MS = 30_000

/** Longest wait at the end for traces to be sent, and what there is of it when requests took all the time that there was. */
const LAST_SPANS_MS = 2000
const LEAST_FOR_LAST_SPANS_MS = 250

/** Longest wait for what settings lead to, before anything begins. What has not answered by then is told by `/readyz`. */
const MISTAKES_WITHIN_MS = 5000

/** Fields of any request or answer that carry a secret, by the schemas' own marks. */
export const SECRET_FIELDS = secretFields([...Object.values(controlSchemas), ...Object.values(runtimeSchemas)])

/**
 * Puts the service together. Nothing listens yet; `close()` lets go of everything.
 *
 * @throws ConfigError when a setting that serving needs is missing, or leads to what cannot be right
 */
export async function buildApp(config: Settings, parts: AppParts = {}): Promise<App> {
  requireServing(config)
  const roots = requireRoots(config)
  const metrics = createMetrics({ process: parts.processMetrics ?? false })
  const tracing = sendsTraces(config) ? await openTracing(config, (error) => tellExport(error)) : undefined
  const logger = createLogger({ level: config.LOG_LEVEL, secrets: SECRET_FIELDS, fields: tracing && (() => tracing.logFields()), ...(parts.logDestination && { destination: parts.logDestination }) })
  const headersFor = outsideOfRoutes(config.PLANES === 'runtime' ? undefined : config.CORS_ORIGINS)
  const compilers = parts.compilers ?? createCompilers()
  const app = serverOf(config, logger, { compilers, tracing, headersFor })
  if (tracing) endWith(tracing)
  const hasher = createHasher({
    profile: config.HASH_PROFILE,
    version: () => newHashVersion!(),
    queueSize: config.QUEUE_SIZE,
    onDone: (operation, seconds) => metrics.argon2.observe({ operation }, seconds),
    observe: tracing && hashingObserver(tracing),
  })
  const pools = new Map<string, OpenPool>()
  metrics.watch('mecha_keys_database_connections', 'Connections of a plane, in use (active) and not (idle)',
    () => [...pools].flatMap(([plane, pool]) => (['active', 'idle'] as const).map((state) => ({ labels: { plane, state }, value: pool.connections()[state] }))), ['plane', 'state'])
  metrics.watch('mecha_keys_database_waiting', 'Statements that wait for a connection',
    () => [...pools].map(([plane, pool]) => ({ labels: { plane }, value: pool.connections().waiting })), ['plane'])
  metrics.watch('mecha_keys_argon2_waiting', 'argon2 computations that wait for a thread', hasher.waiting)
  /** As any plane's database tells it. */
  let newHashVersion: ReturnType<typeof hashVersion> | undefined
  const checks: Record<string, ReadinessCheck> = {}
  /** What a setting leads to that no waiting mends. */
  const mistakes: ReadinessCheck[] = []
  let authz: FastifyInstance | undefined
  let draining = false
  const onDraining: (() => void)[] = []

  for (const schema of [ProblemSchema, OAuthErrorSchema, KeySchema, GatewaySchema, EventSchema]) app.addSchema(schema)
  readBodies(app)
  registerNotFound(app, (reply) => {
    metrics.recordUnknownRoute(reply)
    void reply.headers(headersFor(reply.request))
  })
  registerMetrics(app, metrics)
  app.setErrorHandler((error, request, reply) => answerProblem(reply, loggedProblem(error, request)))
  await parts.describeRoutes?.(app)
  registerContract(app, config.PLANES)
  registerErrorPages(app)

  if (config.PLANES !== 'runtime') {
    const { db } = openPlane('control', 'DATABASE_URL')
    const plane = controlPlane({ db, roots, config, hasher, onReceipt }, await operatorAuthenticator(config))
    mistakes.push(() => issuerMistake(config))
    checks['issuer'] = untilRight(() => issuerMistake(config), app.log)
    const keeper = new SigningKeyMaintenance({ db, roots }, app.log)
    watchKeys(db)
    app.addHook('onReady', () => keeper.start())
    app.addHook('onClose', () => keeper.stop())
    await app.register(async (scope) => {
      // Gateways are no browsers, so the runtime plane answers no preflight.
      if (config.CORS_ORIGINS) await allowOrigins(scope, config.CORS_ORIGINS)
      if (tracing) markPlane(scope, 'control')
      await scope.register(plane)
    })
  }
  if (config.PLANES !== 'control') {
    const { db, renew } = openPlane('runtime', 'RUNTIME_DATABASE_URL', 'DATABASE_URL')
    const usage = recordUsage(db)
    const clock = parts.clock ?? new Clock()
    const cache = new CredentialCache(config.CACHE_MAX_KEYS)
    const followers: Follower[] = []
    const { feed, streams } = followChanges(db, followers, clock, () => cache.size)
    const ofOneHistory = holdToOneHistory({ feed, renewConnections: renew, log: app.log })
    const oauth = oauthOf(db, ofOneHistory, feed, clock)
    const loader = new RowLoader({
      read: async (ids, whileSent) => (await ofOneHistory(() => whileSent(() => findCredentials(db, ids)))).found,
      statements: COLD_STATEMENTS,
      limit: config.QUEUE_SIZE,
    })
    const fence = new Fence({ cache, loader, prover: new SecretProver(roots, hasher), feed, clock })
    followers.push(fence, oauth.places, oauth.statusList)
    metrics.watch('mecha_keys_cached_keys', 'Keys held in memory', () => cache.size)
    metrics.watch('mecha_keys_reads_waiting', 'Keys that wait for the database', () => loader.pending)
    watchFeed(feed, clock)
    checks['feed'] = async () => (feed.isFresh() ? undefined : `the change feed has no word from the database${feed.lostBy ? ` (${feed.lostBy})` : ''}: does ${feedSetting()} lead straight to it?`)
    const hashRenewal = new HashRenewal({ db, roots, hasher, hashAlike: hashAlike(db, costNumber(config.HASH_PROFILE)), log: app.log })
    const verifier = new Verifier({ fence, firstUses: new FirstUses(db, ofOneHistory), hashRenewal, roots, clock, feed, usage, metrics })
    metrics.watch('mecha_keys_change_streams', 'Streams of changes to gateways', () => streams.size)
    const findChangedOf = (held: readonly HeldVersion[], asker?: { readonly orgId: string | null }) => ofOneHistory(() => findChanged(db, held, asker))
    const revalidation = new Revalidation({ fence, findChanged: findChangedOf, afterMs: config.REVALIDATE_AFTER * 1000, log: app.log })
    metrics.count('mecha_keys_revalidation_changed_total', 'Keys in memory that were found to be others in the database, of which the change feed had not told', () => revalidation.changed)
    app.addHook('onReady', async () => revalidation.start())
    app.addHook('onClose', async () => revalidation.stop())
    const revocation = { db, verifier, ofOneHistory, invalidate: (ids: readonly string[]) => invalidate(followers, ids), perMinute: config.REVOKE_TOKEN_RATE }
    const nonces = { db, verifier, ofOneHistory, queueSize: config.QUEUE_SIZE }
    const plane = runtimePlane({ verifier, clock, feed, streams, revocation, nonces, usage, findChanged: findChangedOf, oauth: { ...oauth, verifier }, config })
    await app.register(async (scope) => {
      if (tracing) markPlane(scope, 'runtime')
      await scope.register(plane)
    })
    onDraining.push(() => streams.end())
    if (config.AUTHZ_LISTEN) authz = await openDoor(verifier)
  }
  registerHealth(app, { checks, isDraining: () => draining, onReadiness: (ready) => metrics.ready.set(ready ? 1 : 0) })
  if (parts.refusesMistakes) await refuseMistakes()
  await app.ready()
  // For the log: nobody may be asking for it yet.
  if (parts.refusesMistakes) void checks['root_secrets']!()
  return { app, authz, startDraining }

  /** A receipt that was waited for. */
  function onReceipt(seconds: number, complete: boolean): void {
    metrics.propagation.observe({ complete: String(complete) }, seconds)
    tracing?.did({ name: 'wait for replicas', seconds, attributes: { 'mecha_keys.complete': complete } })
  }

  function tellExport(error: Error | undefined): void {
    if (error) app.log.warn({ err: error }, 'traces could not be sent, and are lost; nothing else is')
    else app.log.info('traces are sent again')
  }

  /** The last spans are sent when everything else is over, in what is left of the time. */
  function endWith(tracing: Tracing): void {
    let until = 0
    app.addHook('preClose', (done) => {
      until = performance.now() + config.SHUTDOWN_TIMEOUT * 1000
      done()
    })
    app.addHook('onClose', () => tracing.stop(Math.min(LAST_SPANS_MS, Math.max(until - performance.now(), LEAST_FOR_LAST_SPANS_MS))))
  }

  function startDraining(): void {
    draining = true
    for (const drain of onDraining) drain()
  }

  /** Nothing of the service has begun by now but the pools. */
  async function refuseMistakes(): Promise<void> {
    const found = Promise.all(mistakes.map((mistake) => mistake().catch(() => undefined))).then((all) => all.find((one) => one !== undefined))
    const mistake = await Promise.race([found, sleep(MISTAKES_WITHIN_MS, undefined, { ref: false })])
    if (mistake === undefined) return
    await app.close()
    throw new ConfigError(mistake)
  }

  /** What writes when keys were used and refused, and writes the rest at the end. */
  function recordUsage(db: Kysely<Database>): UsageRecorder {
    const usage = new UsageRecorder({
      writeUses: (uses) => recordUses(db, uses),
      writeRefusals: (refusals) => recordRefusals(db, refusals),
      intervalMs: config.USAGE_FLUSH_INTERVAL * 1000,
      max: config.CACHE_MAX_KEYS,
      onError: (error) => app.log.warn({ err: error, pending: usage.pending, dropped: usage.dropped }, 'times of use could not be written and are kept for the next attempt'),
    })
    metrics.watch('mecha_keys_usage_pending', 'Keys whose times of use or of refusal wait to be written', () => usage.pending)
    metrics.watch('mecha_keys_usage_dropped', 'Times of use or of refusal that were given up since the start, for want of room', () => usage.dropped)
    app.addHook('onClose', () => usage.stop())
    return usage
  }

  function watchFeed(feed: Feed, clock: Clock): void {
    metrics.watch('mecha_keys_feed_fresh', '1 while the change feed vouches for what is held in memory', () => (feed.isFresh() ? 1 : 0))
    metrics.watch('mecha_keys_feed_lag_seconds', 'Since the question to which everything that the change feed told is the answer; +Inf before the first', () => (clock.now() - feed.confirmedAt) / 1000)
    metrics.count('mecha_keys_feed_losses_total', 'How often the connection of the change feed was lost', () => feed.counts.losses)
    metrics.count('mecha_keys_feed_resets_total', 'How often everything in memory was taken for changed, the start included', () => feed.counts.resets)
    metrics.count('mecha_keys_feed_history_changes_total', 'How often the database became one of another history: a restart, a failover, a restore', () => feed.counts.historyChanges)
  }

  function watchKeys(db: Kysely<Database>): void {
    const inventory = watchInventory(db, (error) => app.log.warn({ err: error }, 'keys could not be counted'))
    metrics.watch('mecha_keys_keys', 'Mecha keys by status, a minute old at most; estimated from a sample where there are many',
      () => Object.entries(inventory()?.keys ?? {}).map(([status, value]) => ({ labels: { status }, value })), ['status'])
    metrics.watch('mecha_keys_signing_key_age_seconds', 'Since the key that signs now began to, a minute old at most', () => inventory()?.signingKeyAge ?? undefined)
  }

  /** What signs, and what tells of the end of what was signed. */
  function oauthOf(db: Kysely<Database>, ofOneHistory: OfOneHistory, feed: Feed, clock: Clock): Omit<OAuthParts, 'verifier'> {
    const issuer = () => config.PUBLIC_URL ?? listeningUrl(app, config)
    const keyring = new Keyring({ read: () => ofOneHistory(() => findSigningKeys(db)), roots, reloadMs: SIGNING_KEYS_RELOAD_MS, clock, log: app.log })
    const statuses = new Statuses({
      findChanges: (since) => ofOneHistory(() => findStatusChanges(db, since)),
      find: (from, below) => ofOneHistory(() => findStatuses(db, from, below)),
      feed, afterMs: config.REVALIDATE_AFTER * 1000, log: app.log,
    })
    app.addHook('onClose', async () => statuses.stop())
    const statusList = new StatusList({ statuses, keyring, issuer, maxStalenessMs: config.REVOCATION_MAX_STALENESS * 1000, timeoutMs: config.DATABASE_TIMEOUT * 1000, clock })
    const findPlace = async (id: string) => (await ofOneHistory(() => findStatusPlace(db, id))).place
    const places = new StatusPlaces(findPlace, config.CACHE_MAX_KEYS)
    return {
      keyring, statusList, places, issuer, ttlSeconds: config.TOKEN_TTL,
      exchanges: new CallCounts(), perMinute: { key: config.TOKEN_RATE_PER_KEY, address: config.TOKEN_RATE },
    }
  }

  /** The feed that keeps true what is held in memory, on a connection of its own, and passes on to gateways what is theirs. */
  function followChanges(db: Kysely<Database>, followers: readonly Follower[], clock: Clock, countKeys: () => number): { feed: Feed; streams: ChangeStreams } {
    const staleness = config.REVOCATION_MAX_STALENESS * 1000
    const pollMs = Math.min(1000, staleness / 4)
    const feed: Feed = new Feed({
      url: config[feedSetting()]!,
      replicaId: randomUUID(),
      pollMs,
      // Where there are streams, their gateways wait for word once a second.
      quietPollMs: () => (streams.size > 0 ? pollMs : Math.min(QUIET_POLL_MS, staleness / 4)),
      timeoutMs: Math.min(config.DATABASE_TIMEOUT * 1000, staleness),
      maxStalenessMs: staleness,
      hashCost: costNumber(config.HASH_PROFILE),
      retentionMs: FEED_RETENTION_MS,
      async onChanges(changes, position) {
        const ids = changes.map(({ id }) => id)
        await inSlices(piecesOf(ids, CHANGES_PER_SLICE), 1, (piece) => invalidate(followers, piece))
        // Only then: what a gateway is answered after it was told is of after the change.
        await streams.changed(changes, position)
      },
      onReset(why) {
        if (why !== 'start') app.log.info({ why, keys: countKeys(), streams: streams.size }, 'everything in memory is asked about anew, and streams of changes end')
        for (const follower of followers) follower.invalidateAll()
        streams.closeAll()
      },
      onConfirmed: () => streams.confirmed(),
      onOld(snapshot) {
        // On another connection than the feed's: whatever comes of it, the feed goes on. What is left is tried again in an hour.
        sweepChanges(db, snapshot, () => !draining).catch((error: unknown) => app.log.warn({ err: error }, 'old changes could not all be removed'))
      },
      onPolled: tracing && ((seconds, changes) => tracing.didAlone({ name: 'feed poll', seconds, isRemote: true, attributes: { 'db.system.name': 'postgresql', 'mecha_keys.changes': changes } })),
      clock,
      log: app.log,
    })
    const streams: ChangeStreams = new ChangeStreams({ feed, clock, max: config.CHANGE_STREAMS_MAX, heartbeatMs: pollMs })
    app.addHook('onReady', async () => feed.start())
    // Before the server waits for what is under way: a stream ends when it is told to.
    app.addHook('preClose', async () => streams.end())
    app.addHook('onClose', () => feed.stop())
    return { feed, streams }
  }

  /** `/v1/authz` on a server of its own, which asks nobody who they are: the address decides who may ask. */
  async function openDoor(verifier: Verifier): Promise<FastifyInstance> {
    const door = serverOf(config, logger, { authzAlone: true, compilers, tracing, headersFor: outsideOfRoutes(undefined) })
    if (tracing) markPlane(door, 'runtime')
    door.addSchema(ProblemSchema)
    takeTimes(door, metrics)
    registerNotFound(door, metrics.recordUnknownRoute)
    decorateCallers(door)
    const everybody = { id: null, org_id: config.AUTHZ_ORG ?? null }
    await door.register(authzRoutes({ verifier, send: createSender(), unavailable: config.AUTHZ_UNAVAILABLE, everybody }))
    await door.ready()
    // Both stop to listen at the same time; what the door still answers needs the database as much as the rest does.
    let closing: Promise<void> | undefined
    app.addHook('preClose', (done) => {
      closing = door.close()
      done()
    })
    app.addHook('onClose', () => closing)
    return door
  }

  /** Nothing to end the process for: who has lost a root secret needs the control plane to end what was made under it. */
  async function rootSecretsTrouble(db: Kysely<Database>): Promise<string | undefined> {
    const missing = await missingRootSecret(db, roots)
    return missing && `ROOT_SECRETS lacks ${missing}, which living keys or signing keys need: add it (mecha-keys root-secrets status), or end them`
  }

  function feedSetting(): DatabaseUrl {
    return databaseSetting(config, 'DATABASE_DIRECT_URL', 'RUNTIME_DATABASE_URL', 'DATABASE_URL')
  }

  /** A plane's own login, counted, watched by readiness, and closed after everything that uses it. */
  function openPlane(plane: Plane, ...settings: [DatabaseUrl, ...DatabaseUrl[]]): OpenPool {
    const setting = databaseSetting(config, ...settings)
    const pool = openPool({
      url: config[setting]!,
      size: config.DATABASE_POOL_SIZE,
      timeoutMs: config.DATABASE_TIMEOUT * 1000,
      name: `mecha-keys ${plane}`,
      prepares: preparesStatements(config),
      onQuery(statement) {
        metrics.queries.inc({ plane })
        tracing?.did(statementWork(statement, plane))
      },
      onError: (error) => app.log.warn({ err: error }, 'an idle database connection was lost'),
    })
    pools.set(plane, pool)
    newHashVersion ??= hashVersion(pool.db)
    const login = { db: pool.db, plane, setting, isAlone: config.PLANES === plane }
    checks[`database_${plane}`] = () => databaseTrouble(login)
    checks['root_secrets'] ??= untilRight(() => rootSecretsTrouble(pool.db), app.log)
    mistakes.push(() => databaseMistake(login))
    app.addHook('onClose', () => pool.db.destroy())
    return pool
  }
}

function invalidate(followers: readonly Follower[], ids: readonly string[]): void {
  for (const follower of followers) follower.invalidate(ids)
}

/** A server, which tells a proxy that asks `/v1/authz` nothing that it cannot take. */
function serverOf(config: Settings, logger: Logger, { authzAlone = false, ...given }: { authzAlone?: boolean } & Pick<ServerOptions, 'compilers' | 'tracing' | 'headersFor'>): FastifyInstance {
  return createServer({
    logger,
    requestTimeoutMs: config.REQUEST_TIMEOUT * 1000,
    closeTimeoutMs: config.SHUTDOWN_TIMEOUT * 1000,
    trustProxy: config.TRUST_PROXY ?? false,
    requireHostHeader: !authzAlone,
    ...given,
    rewriteTarget: withoutSubPath,
    problemFor: (problem, target) => (authzAlone || isForAuthz(target) ? asRefusal(problem, config.AUTHZ_UNAVAILABLE) : problem),
  })
}

/** Where this process is reached when nothing says otherwise: by the port that it was given, once it has one. */
function listeningUrl({ server }: FastifyInstance, { HOST, PORT }: Settings): string {
  const address = server.address() as AddressInfo | null
  return `http://${HOST.includes(':') ? `[${HOST}]` : HOST}:${address?.port ?? PORT}`
}

/** Loads what traces need, which nothing else does. */
async function openTracing(config: Settings, onExport: (error: Error | undefined) => void): Promise<Tracing> {
  const { startTracing } = await import('../tracing/opentelemetry.js')
  return startTracing({
    url: config.OTEL_EXPORTER_OTLP_TRACES_ENDPOINT ?? `${config.OTEL_EXPORTER_OTLP_ENDPOINT}/v1/traces`,
    headers: config.OTEL_EXPORTER_OTLP_HEADERS ?? {},
    compression: config.OTEL_EXPORTER_OTLP_COMPRESSION,
    timeoutMs: config.OTEL_EXPORTER_OTLP_TIMEOUT,
    resource: { 'service.name': 'mecha-keys', 'service.version': VERSION, 'service.instance.id': randomUUID(), ...config.OTEL_RESOURCE_ATTRIBUTES, ...(config.OTEL_SERVICE_NAME && { 'service.name': config.OTEL_SERVICE_NAME }) },
    sampler: config.OTEL_TRACES_SAMPLER,
    ratio: config.OTEL_TRACES_SAMPLER_ARG,
    queueSize: config.OTEL_BSP_MAX_QUEUE_SIZE,
    delayMs: config.OTEL_BSP_SCHEDULE_DELAY,
    version: VERSION,
    onExport,
  })
}
