/**
 * The change feed, as a replica follows it: a connection of its own that listens and polls.
 *
 * A notification only wakes the poll, so one that is lost costs a poll interval and never a revocation. Positions are
 * not commit order, so what is asked for is not "after the last position" but "by a transaction that the last poll did
 * not see", which is exact: nothing that commits late is missed and nothing comes twice.
 *
 * One connection is one history. After it is lost, the database may have been restarted or failed over, and may give
 * numbers of transactions that it had given before: nothing learnt on another connection is compared with this one's.
 * But for one way to tell that another connection's history is the same: each holds an advisory lock, shared and named
 * by a number that the first of them drew. Locks end with their server, so one that is held now is of no other history.
 */

import { randomInt } from 'node:crypto'
import type { Socket } from 'node:net'
import { setTimeout as sleep } from 'node:timers/promises'
import type { FastifyBaseLogger } from 'fastify'
import { Client } from 'pg'
import { commitDurably } from '../db/pool.js'
import type { CredentialKind } from '../key/id.js'

/** A credential that changed, as its row is now. */
export interface Change {
  /** A UUID. */
  readonly id: string
  /** `null`: the row is gone, and nobody can say any more whose it was. */
  readonly kind: CredentialKind | null
  /** `null` for a gateway of all organizations, and where the row is gone. */
  readonly org_id: string | null
}

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
  readonly onChanges: (changes: readonly Change[]) => void
  /** Anything may have changed. */
  readonly onReset: () => void
  /** Everything that was committed before a poll was sent has been told. */
  readonly onConfirmed: () => void
  readonly log: FastifyBaseLogger
}

/** What a poll saw, and what had changed since the one before. */
interface Page {
  /** Which transactions were over, as PostgreSQL writes it. */
  readonly snapshot: string
  readonly now: Date
  /** An id that is `null` is every key. */
  readonly changed: readonly (Change | { readonly id: null })[]
}

/** Longest wait for a database that does not answer, when all that is left to do is to say goodbye. */
const STOP_TIMEOUT_MS = 1000
/** Between two attempts to connect, at most. */
const RECONNECT_MS = 1000

/** How old a position may be to be gone on from. Changes are kept for much longer, by whatever clock. */
const MAX_AWAY_MS = 600_000
/** More changes than this are not told one by one to a follower who was away. */
const MAX_MISSED = 10_000
/** History, database's time and snapshot; the numbers in base 36. */
const POSITION = /^([0-9a-z]{1,6})\.([0-9a-z]{1,10})\.(\d{1,20}:\d{1,20}:[\d,]*)$/
/** First word of the advisory locks that name a history: `mech` in ASCII. */
const HISTORY_LOCK = 0x6d656368

/** What a snapshot did not see. The first condition is for the index. */
const UNSEEN = 'xid >= pg_snapshot_xmin($1::pg_snapshot) AND NOT pg_visible_in_snapshot(xid, $1::pg_snapshot)'
/** Whose each key is, looked up one by one by the primary key: a join could be planned as a walk through all keys. */
const WHOSE = `
  SELECT coalesce(json_agg(json_build_object('id', key_id, 'kind', (SELECT kind FROM keys WHERE id = key_id), 'org_id', (SELECT org_id FROM keys WHERE id = key_id))), '[]')`

/** One statement, so that what is found and what was seen are of one snapshot. */
const POLL = `
  SELECT pg_current_snapshot()::text AS snapshot, clock_timestamp() AS now,
         (${WHOSE} FROM (SELECT DISTINCT key_id FROM changes WHERE ${UNSEEN}) unseen) AS changed`

/** Histories that somebody on this server is in at this moment. Locks are gone with a crash, and are not on a standby. */
const HISTORIES = `
  SELECT objid::bigint::int AS history FROM pg_locks JOIN pg_database ON pg_database.oid = pg_locks.database AND datname = current_database()
  WHERE locktype = 'advisory' AND classid = ${HISTORY_LOCK} AND objsubid = 2 AND granted`
const JOIN_HISTORY = `SELECT pg_advisory_lock_shared(${HISTORY_LOCK}, $1)`

/** What somebody missed who comes back: all of it, or so much that it is too much. Nothing where the history is another one. */
const MISSED = `
  SELECT (${WHOSE} FROM (SELECT key_id FROM changes WHERE ${UNSEEN} LIMIT ${MAX_MISSED + 1}) unseen) AS changed
  WHERE $2 IN (${HISTORIES})`

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
  /** What connections have in common that see the same history: only their snapshots can be compared with this one's. */
  #history = 0
  /** The last of those who came back and wait for what they missed. */
  #asked: Promise<unknown> = Promise.resolve()
  /** What has been told last. */
  #page: Page | undefined
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

  /** When everything that has been told was asked for: {@link isFresh} counts from then, on the monotonic clock. */
  get confirmedAt(): number {
    return this.#confirmedAt
  }

  /** What has been told so far, for {@link missedSince} of any replica; `undefined` before the first poll. */
  get position(): string | undefined {
    return this.#page && [this.#history.toString(36), this.#page.now.getTime().toString(36), this.#page.snapshot].join('.')
  }

  /**
   * What somebody has missed who was told everything up to a position. When this resolves, everything that has been told
   * here is in it, and what is told from now on is not: it goes over the connection that polls, in its turn.
   *
   * @returns `undefined` when that cannot be said: take everything for changed
   */
  missedSince(position: string): Promise<readonly Change[] | undefined> {
    // One at a time, so that no more than one stands before the next poll, however many come back at once.
    const missed = this.#asked.then(() => this.#missedSince(position))
    this.#asked = missed
    return missed
  }

  async #missedSince(position: string): Promise<readonly Change[] | undefined> {
    const client = this.#client
    const [, history, time, snapshot] = POSITION.exec(position) ?? []
    if (!client || !this.#page || !history || Math.abs(this.now() - parseInt(time!, 36)) > MAX_AWAY_MS) return undefined
    // A snapshot that is none is refused by the database: nobody was given it here.
    const { rows } = await client.query<Pick<Page, 'changed'>>(MISSED, [snapshot, parseInt(history, 36)]).catch(() => ({ rows: [] }))
    const [missed] = rows
    if (!missed || missed.changed.length > MAX_MISSED || client !== this.#client) return undefined
    const changes = distinct(missed.changed)
    return changes.every((change): change is Change => change.id !== null) ? changes : undefined
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
    await commitDurably(client)
    await client.query('LISTEN mecha_keys_changes')
    const { rows } = await client.query<{ history: number }>(`${HISTORIES} ORDER BY 1 LIMIT 1`)
    this.#history = rows[0]?.history ?? randomInt(1, 2 ** 31 - 1)
    await client.query(JOIN_HISTORY, [this.#history])
  }

  /** Polls until told to stop: when notified, and every so often. */
  async #follow(onPolled: () => void): Promise<void> {
    /** The snapshot below which to sweep, when it is old enough. */
    let old: { readonly at: number; readonly snapshot: string } | undefined
    while (!this.#stopped) {
      const sentAt = performance.now()
      const last: Page | undefined = this.#page
      const page = await this.#poll(last?.snapshot)
      const isContinuous = last !== undefined && sentAt - this.#confirmedAt < this.parts.retentionMs
      this.#page = page
      if (!isContinuous || page.changed.some(({ id }) => id === null)) this.parts.onReset()
      else if (page.changed.length > 0) this.parts.onChanges(page.changed as Change[])
      await this.#query(CONFIRM, [this.parts.replicaId, page.snapshot])
      // Not before that is written: a receipt counts on it that who has been silent for the bound is not fresh.
      this.#databaseTime = page.now.getTime()
      this.#confirmedAt = sentAt
      this.parts.onConfirmed()
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
    this.#page = undefined
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

function distinct<T extends { readonly id: unknown }>(changes: readonly T[]): T[] {
  return [...new Map(changes.map((change) => [change.id, change])).values()]
}
