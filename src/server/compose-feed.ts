/** The change feed, and everything that it invalidates or tells: the caches of this process first, then gateways by their streams. */

import { randomUUID } from 'node:crypto'
import type { Kysely } from 'kysely'
import type { Clock } from '../clock.js'
import { databaseSetting, type Settings } from '../config.js'
import { costNumber } from '../credentials/hash.js'
import type { Database } from '../db/tables.js'
import { Feed } from '../runtime/changes/feed.js'
import { inSlices, piecesOf } from '../runtime/changes/slices.js'
import { ChangeStreams } from '../runtime/changes/sse.js'
import { sweepChanges } from '../runtime/changes/sweep.js'
import type { SharedDeps } from './shared-deps.js'

/** Something in memory that was read of keys. */
export interface Invalidatable {
  /** These keys (UUIDs) changed. */
  invalidate(ids: readonly string[]): void
  /** Any key may have changed. */
  invalidateAll(): void
}

export interface FeedDeps {
  readonly db: Kysely<Database>
  readonly clock: Clock
  /** More of them may be added until the feed starts. */
  readonly caches: readonly Invalidatable[]
  /** How many keys are cached, for the log. */
  readonly countKeys: () => number
}

/** How long changes are kept for a replica that is cut off; one that was away for longer starts anew. */
const FEED_RETENTION_MS = 3_600_000
/** Longest time between two polls of the feed while no gateway follows: a quarter of the default bound. */
const QUIET_POLL_MS = 2500
/** Changes that are applied without letting requests in between, which takes some milliseconds. */
const CHANGES_PER_SLICE = 1000

/** Composes the feed, on a database connection of its own, and the streams by which gateways follow it. */
export function composeFeed(shared: SharedDeps, config: Settings, { db, clock, caches, countKeys }: FeedDeps): { feed: Feed; streams: ChangeStreams } {
  const { app, tracing } = shared
  const staleness = config.REVOCATION_MAX_STALENESS * 1000
  const pollMs = Math.min(1000, staleness / 4)
  const setting = databaseSetting(config, 'DATABASE_DIRECT_URL', 'RUNTIME_DATABASE_URL', 'DATABASE_URL')
  const feed: Feed = new Feed({
    url: config[setting]!,
    replicaId: randomUUID(),
    pollMs,
    // Gateways that follow a stream expect a confirmation once a second.
    quietPollMs: () => (streams.size > 0 ? pollMs : Math.min(QUIET_POLL_MS, staleness / 4)),
    timeoutMs: Math.min(config.DATABASE_TIMEOUT * 1000, staleness),
    maxStalenessMs: staleness,
    hashCost: costNumber(config.HASH_PROFILE),
    retentionMs: FEED_RETENTION_MS,
    async onChanges(changes, position) {
      const ids = changes.map(({ id }) => id)
      await inSlices(piecesOf(ids, CHANGES_PER_SLICE), 1, (piece) => invalidate(caches, piece))
      // Gateways are told last: whatever one of them is answered after that is from after the change.
      await streams.changed(changes, position)
    },
    onReset(why) {
      if (why !== 'start') app.log.info({ why, keys: countKeys(), streams: streams.size }, 'everything in memory is asked about anew, and streams of changes end')
      for (const cache of caches) cache.invalidateAll()
      streams.closeAll()
    },
    onConfirmed: () => streams.confirmed(),
    onOld(snapshot) {
      // On another connection than the feed's, so that a failure does not stop the feed. What is left is tried again in an hour.
      sweepChanges(db, snapshot, () => !shared.isDraining()).catch((error: unknown) => app.log.warn({ err: error }, 'old changes could not all be removed'))
    },
    onPolled: tracing && ((seconds, changes) => tracing.didAlone({ name: 'feed poll', seconds, isRemote: true, attributes: { 'db.system.name': 'postgresql', 'mecha_keys.changes': changes } })),
    clock,
    log: app.log,
  })
  const streams: ChangeStreams = new ChangeStreams({ feed, clock, max: config.CHANGE_STREAMS_MAX, heartbeatMs: pollMs })
  shared.checks.ofReadiness['feed'] = async () => (feed.isFresh() ? undefined : `the change feed has no word from the database${feed.lostBy ? ` (${feed.lostBy})` : ''}: does ${setting} lead straight to it?`)
  app.addHook('onReady', async () => feed.start())
  // The server waits for requests under way when it closes, and a stream is one that ends only when it is told to.
  app.addHook('preClose', async () => streams.end())
  app.addHook('onClose', () => feed.stop())
  return { feed, streams }
}

export function invalidate(caches: readonly Invalidatable[], ids: readonly string[]): void {
  for (const cache of caches) cache.invalidate(ids)
}

export function watchFeed({ metrics }: SharedDeps, feed: Feed, clock: Clock): void {
  metrics.watch('mecha_keys_feed_fresh', '1 while the change feed vouches for what is held in memory', () => (feed.isFresh() ? 1 : 0))
  metrics.watch('mecha_keys_feed_lag_seconds', 'Since the question to which everything that the change feed told is the answer; +Inf before the first', () => (clock.now() - feed.confirmedAt) / 1000)
  metrics.count('mecha_keys_feed_losses_total', 'How often the connection of the change feed was lost', () => feed.counts.losses)
  metrics.count('mecha_keys_feed_resets_total', 'How often everything in memory was taken for changed, the start included', () => feed.counts.resets)
  metrics.count('mecha_keys_feed_history_changes_total', 'How often the database became one of another history: a restart, a failover, a restore', () => feed.counts.historyChanges)
}
