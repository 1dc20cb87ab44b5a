/** The runtime plane, and what it depends on: the caches, the feed that invalidates them, the verifier, OAuth. */

import type { Kysely } from 'kysely'
import { Clock } from '../clock.js'
import type { Settings } from '../config.js'
import { costNumber } from '../credentials/hash.js'
import { hashAlike } from '../db/followers.js'
import type { Database } from '../db/tables.js'
import { CallCounts } from '../http/rate-limit.js'
import type { Feed } from '../runtime/changes/feed.js'
import { holdToOneHistory, type OfOneHistory } from '../runtime/changes/one-history.js'
import type { ChangeStreams } from '../runtime/changes/sse.js'
import type { OAuthParts } from '../runtime/oauth/deps.js'
import { Keyring } from '../runtime/oauth/keyring.js'
import { StatusPlaces } from '../runtime/oauth/status-list-index.js'
import { StatusList } from '../runtime/oauth/status-list.js'
import { Statuses } from '../runtime/oauth/statuses.js'
import { findSigningKeys, findStatusChanges, findStatuses, findStatusPlace } from '../runtime/oauth/store.js'
import { Revalidation } from '../runtime/revalidate/revalidation.js'
import { findChanged, type CachedVersion } from '../runtime/revalidate/store.js'
import { runtimePlane } from '../runtime/routes.js'
import { UsageRecorder } from '../runtime/usage/recorder.js'
import { recordRefusals, recordUses } from '../runtime/usage/store.js'
import { CredentialCache } from '../runtime/verify/credential-cache.js'
import { Fence } from '../runtime/verify/fence.js'
import { FirstUses } from '../runtime/verify/first-use.js'
import { HashRenewal } from '../runtime/verify/hash-renewal.js'
import { RowLoader } from '../runtime/verify/row-loader.js'
import { SecretProver } from '../runtime/verify/secret-prover.js'
import { findCredentials } from '../runtime/verify/store.js'
import { Verifier } from '../runtime/verify/verifier.js'
import { markPlane } from '../tracing/tracing.js'
import type { SharedDeps } from './shared-deps.js'
import { composeFeed, invalidate, watchFeed, type Invalidatable } from './compose-feed.js'
import { listeningUrl } from './listener.js'

/** Statements under way at once that read keys which are not cached. With more of them, each would only read fewer keys. */
const COLD_STATEMENTS = 2
/** How soon a replica notices a new signing key. */
const SIGNING_KEYS_RELOAD_MS = 30_000

export async function composeRuntime(shared: SharedDeps, config: Settings, clock = new Clock()): Promise<{ verifier: Verifier; streams: ChangeStreams }> {
  const { app, roots, hasher, metrics, tracing, pools } = shared
  const { db, renew } = pools.open('runtime', 'RUNTIME_DATABASE_URL', 'DATABASE_URL')
  const usage = composeUsage(shared, config, db)
  const cache = new CredentialCache(config.CACHE_MAX_KEYS)
  const caches: Invalidatable[] = []
  const { feed, streams } = composeFeed(shared, config, { db, clock, caches, countKeys: () => cache.size })
  const ofOneHistory = holdToOneHistory({ feed, renewConnections: renew, log: app.log })
  const oauth = composeOAuth(shared, config, { db, ofOneHistory, feed, clock })
  const loader = new RowLoader({
    read: async (ids, whileSent) => (await ofOneHistory(() => whileSent(() => findCredentials(db, ids)))).found,
    statements: COLD_STATEMENTS,
    limit: config.QUEUE_SIZE,
  })
  const fence = new Fence({ cache, loader, prover: new SecretProver(roots, hasher), feed, clock })
  caches.push(fence, oauth.places, oauth.statusList)
  metrics.watch('mecha_keys_cached_keys', 'Keys held in memory', () => cache.size)
  metrics.watch('mecha_keys_reads_waiting', 'Keys that wait for the database', () => loader.pending)
  watchFeed(shared, feed, clock)
  const hashRenewal = new HashRenewal({ db, roots, hasher, hashAlike: hashAlike(db, costNumber(config.HASH_PROFILE)), log: app.log })
  const verifier = new Verifier({ fence, firstUses: new FirstUses(db, ofOneHistory), hashRenewal, roots, clock, feed, usage, metrics })
  metrics.watch('mecha_keys_change_streams', 'Streams of changes to gateways', () => streams.size)
  const findChangedOf = (cached: readonly CachedVersion[], asker?: { readonly orgId: string | null }) => ofOneHistory(() => findChanged(db, cached, asker))
  const revalidation = new Revalidation({ fence, findChanged: findChangedOf, afterMs: config.REVALIDATE_AFTER * 1000, log: app.log })
  metrics.count('mecha_keys_revalidation_changed_total', 'Keys in memory that were found to be others in the database, of which the change feed had not told', () => revalidation.changed)
  app.addHook('onReady', async () => revalidation.start())
  app.addHook('onClose', async () => revalidation.stop())
  const revocation = { db, verifier, ofOneHistory, invalidate: (ids: readonly string[]) => invalidate(caches, ids), perMinute: config.REVOKE_TOKEN_RATE }
  const nonces = { db, verifier, ofOneHistory, queueSize: config.QUEUE_SIZE }
  const plane = runtimePlane({ verifier, clock, feed, streams, revocation, nonces, usage, findChanged: findChangedOf, oauth: { ...oauth, verifier }, config })
  await app.register(async (scope) => {
    if (tracing) markPlane(scope, 'runtime')
    await scope.register(plane)
  })
  return { verifier, streams }
}

/** Records when keys were used and refused, and writes the rest of it at the end. */
function composeUsage({ app, metrics }: SharedDeps, config: Settings, db: Kysely<Database>): UsageRecorder {
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

interface OAuthSources {
  readonly db: Kysely<Database>
  readonly ofOneHistory: OfOneHistory
  readonly feed: Feed
  readonly clock: Clock
}

/** What signs tokens, and what publishes which of them have ended. */
function composeOAuth({ app, roots }: SharedDeps, config: Settings, { db, ofOneHistory, feed, clock }: OAuthSources): Omit<OAuthParts, 'verifier'> {
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
