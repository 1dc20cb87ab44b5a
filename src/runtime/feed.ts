/**
 * The change feed, as a replica follows it: a connection of its own that listens and polls.
 *
 * A notification only wakes the poll, so one that is lost costs a poll interval and never a revocation. Positions are
 * not commit order, so what is asked for is not "after the last position" but "by a transaction that the last poll did
 * not see", which is exact: nothing that commits late is missed and nothing comes twice.
 *
 * One connection is one history. After it is lost, the database may have been restarted or failed over, and may give
 * numbers of transactions that it had given before: nothing learnt on another connection is compared with this one's.
 */

import type { Socket } from 'node:net'
import { setTimeout as sleep } from 'node:timers/promises'
import type { FastifyBaseLogger } from 'fastify'
import { Client } from 'pg'

export interface FeedParts {
  /** A connection straight to PostgreSQL: LISTEN does not pass a pooler. */
  readonly url: string
  /** Longest time between two polls. */
  readonly pollMs: number
  /** Longest wait for a connection or an answer. */
  readonly timeoutMs: number
  /** How long a confirmation holds: see {@link Feed.isFresh}. */
  readonly maxStalenessMs: number
  /** Tells the control plane how far this replica has come. */
  readonly replicaId: string
  /** How long changes are kept. A replica that was away for longer starts anew. */
  readonly retentionMs: number
  /** Keys that changed, by id (UUID). */
  readonly onChanges: (ids: readonly string[]) => void
  /** Anything may have changed. */
  readonly onReset: () => void
  readonly log: FastifyBaseLogger
}

/** What a poll saw, and what had changed since the one before. */
interface Page {
  /** Which transactions were over, as PostgreSQL writes it. */
  readonly snapshot: string
  readonly now: Date
  /** Ids of keys; `null` is every key. */
  readonly changed: readonly (string | null)[]
}

/** Longest wait for a database that does not answer, when all that is left to do is to say goodbye. */
const STOP_TIMEOUT_MS = 1000
/** Between two attempts to connect, at most. */
const RECONNECT_MS = 1000

/** One statement, so that what is found and what was seen are of one snapshot. The first condition is for the index. */
const POLL = `
  SELECT pg_current_snapshot()::text AS snapshot, clock_timestamp() AS now,
         ARRAY(SELECT DISTINCT key_id FROM changes
               WHERE xid >= pg_snapshot_xmin($1::pg_snapshot) AND NOT pg_visible_in_snapshot(xid, $1::pg_snapshot)) AS changed`

const CONFIRM = `
  INSERT INTO replicas (id, snapshot, seen_at) VALUES ($1, $2::pg_snapshot, clock_timestamp())
  ON CONFLICT (id) DO UPDATE SET snapshot = excluded.snapshot, seen_at = excluded.seen_at`

/** What was over when this snapshot was taken, every follower has seen by now, or will start anew. */
const SWEEP_CHANGES = 'DELETE FROM changes WHERE xid < pg_snapshot_xmin($1::pg_snapshot)'
/** Those who have been silent for long are not coming back under the same id. */
const SWEEP_REPLICAS = "DELETE FROM replicas WHERE seen_at < clock_timestamp() - interval '1 hour'"

export class Feed {
  /** When the poll that last succeeded was sent, on the monotonic clock. */
  #confirmedAt = -Infinity
  /** The database's clock at that poll. */
  #databaseTime = 0
  #client: Client | undefined
  #stopped = false
  #wake = () => {}
  /** A wake-up that came while nobody slept. */
  #woken = false
  #running: Promise<void> | undefined

  constructor(private readonly parts: FeedParts) {}

  start(): void {
    this.#running = this.#run()
  }

  /** Ends, and takes this replica out of the count. */
  async stop(): Promise<void> {
    this.#stopped = true
    this.#wake()
    await Promise.race([this.#running, sleep(STOP_TIMEOUT_MS, undefined, { ref: false })])
    await this.#disconnect()
  }

  /**
   * Whether everything that was committed `maxStalenessMs` ago or earlier has been applied. Counts from before the poll
   * was sent, on a clock that goes on while a process is stopped.
   */
  isFresh(at = performance.now()): boolean {
    return at - this.#confirmedAt <= this.parts.maxStalenessMs
  }

  /**
   * The database's time in milliseconds, from its last answer and the time since the question: at most a round trip
   * fast, and never slow, so that no key outlives its end here. Nobody's setting of a clock on this machine moves it.
   */
  now(at = performance.now()): number {
    return this.#databaseTime + (at - this.#confirmedAt)
  }

  /** Connects, follows until something breaks, and connects again. */
  async #run(): Promise<void> {
    for (let failures = 0; !this.#stopped; ) {
      try {
        await this.#connect()
        await this.#follow(() => (failures = 0))
        await this.#client?.query('DELETE FROM replicas WHERE id = $1', [this.parts.replicaId])
      } catch (error) {
        if (failures++ === 0 && !this.#stopped) this.parts.log.warn({ err: error }, 'the change feed was lost; connecting again')
      } finally {
        await this.#disconnect()
      }
      if (!this.#stopped && failures > 0) await this.#sleep(Math.min(25 * 2 ** failures, RECONNECT_MS))
    }
  }

  async #connect(): Promise<void> {
    const { url, timeoutMs } = this.parts
    const client = new Client({
      connectionString: url,
      application_name: 'mecha-keys feed',
      connectionTimeoutMillis: timeoutMs,
      query_timeout: timeoutMs,
      keepAlive: true,
    })
    this.#client = client
    const wake = () => {
      this.#woken = true
      this.#wake()
    }
    client.on('notification', wake).on('error', wake).on('end', wake)
    await client.connect()
    await client.query('LISTEN mecha_keys_changes')
  }

  /** Polls until told to stop: when notified, and every so often. */
  async #follow(onPolled: () => void): Promise<void> {
    let last: Page | undefined
    /** The snapshot below which to sweep, when it is old enough. */
    let old: { readonly at: number; readonly snapshot: string } | undefined
    while (!this.#stopped) {
      const sentAt = performance.now()
      const page = await this.#poll(last?.snapshot)
      const isContinuous = last !== undefined && sentAt - this.#confirmedAt < this.parts.retentionMs
      if (!isContinuous || page.changed.includes(null)) this.parts.onReset()
      else if (page.changed.length > 0) this.parts.onChanges(page.changed as string[])
      last = page
      await this.#query(CONFIRM, [this.parts.replicaId, page.snapshot])
      // Not before that is written: a receipt counts on it that who has been silent for the bound is not fresh.
      this.#databaseTime = page.now.getTime()
      this.#confirmedAt = sentAt
      onPolled()
      old ??= { at: sentAt, snapshot: page.snapshot }
      if (sentAt - old.at >= this.parts.retentionMs) {
        await this.#query(SWEEP_CHANGES, [old.snapshot])
        await this.#query(SWEEP_REPLICAS)
        old = undefined
      }
      await this.#sleep(this.parts.pollMs)
    }
  }

  /** The first poll of a connection asks for nothing: it is followed by a reset. */
  async #poll(since: string | undefined): Promise<Page> {
    const { rows } = await this.#query<Page>(POLL, [since ?? null])
    return rows[0]!
  }

  #query<Row extends object>(statement: string, values: unknown[] = []) {
    if (!this.#client) throw new Error('the change feed is not connected')
    return this.#client.query<Row>(statement, values)
  }

  /** Says goodbye, and does not wait for an answer: the other end may be gone. */
  async #disconnect(): Promise<void> {
    const client = this.#client
    this.#client = undefined
    if (!client) return
    client.removeAllListeners('notification').removeAllListeners('end')
    await Promise.race([client.end().catch(() => {}), sleep(100, undefined, { ref: false })])
    ;(client as unknown as { connection: { stream: Socket } }).connection.stream.destroy()
  }

  /** Sleeps until woken, for `ms` at most. */
  async #sleep(ms: number): Promise<void> {
    if (!this.#woken && !this.#stopped)
      await new Promise<void>((resolve) => {
        const timer = setTimeout(resolve, ms)
        this.#wake = () => {
          clearTimeout(timer)
          resolve()
        }
      })
    this.#woken = false
  }
}
