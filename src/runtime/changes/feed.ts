/**
 * The change feed, as a replica follows it: a connection of its own that listens and polls.
 *
 * A notification only wakes the poll, so one that is lost costs a poll interval and never a revocation. Positions are
 * not commit order, so what is asked for is not "after the last position" but "by a transaction that the last poll did
 * not see", which is exact: nothing that commits late is missed and nothing comes twice.
 *
 * One connection is one history. After it is lost, the database may have been restarted or failed over, and may give
 * numbers of transactions that it had given before: nothing learnt on another connection is compared with this one's.
 * Each poll names the history that it is of ({@link HISTORY}), and so does everything else that is read from the
 * database: what is of another history than the feed's is not used ({@link isOfHistory}).
 *
 * Gateways come back with a position of another connection. Whether its snapshot can be compared is told by an advisory
 * lock that each follower holds, shared and named by a number that the first of them drew: locks end with their server,
 * and with its crash, so one that is held now is of no run from before.
 */

import { hash, randomBytes, randomInt } from 'node:crypto'
import type { Socket } from 'node:net'
import { setTimeout as sleep } from 'node:timers/promises'
import type { FastifyBaseLogger } from 'fastify'
import { Client } from 'pg'
import { COST_LOCK, RUN_LOCK } from '../../db/followers.js'
import { HISTORY, HISTORY_IN_LINE, isHeld } from '../../db/history.js'
import { causeOf, isReadOnly } from '../../db/outage.js'
import { commitDurably, SERVER_TIMEOUTS } from '../../db/pool.js'
import type { CredentialKind } from '../../credentials/id.js'
import type { Clock } from '../../clock.js'
import { Missed } from './resume.js'

/** A credential that changed, as its row is now. */
export interface Change {
  /** A UUID. */
  readonly id: string
  /** `null`: the row is gone, and nobody can say any more whose it was. */
  readonly kind: CredentialKind | null
  /** `null` for a gateway of all organizations, and where the row is gone. */
  readonly org_id: string | null
}

/** `start`: the feed's first word. `reconnected`: the connection was lost, and with it what came meanwhile. */
export type ResetReason = 'start' | 'reconnected' | 'away_too_long' | 'other_history' | 'changes_removed' | 'too_many_changes' | 'every_key_changed'

export interface FeedParts {
  /** A connection straight to PostgreSQL: LISTEN does not pass a pooler. */
  readonly url: string
  /** Longest time between two polls. */
  readonly pollMs: number
  /** The same while nothing is notified, where notifications come straight from PostgreSQL: nobody may wait for word that all is well. */
  readonly quietPollMs?: () => number
  /** Longest wait for a connection or an answer. */
  readonly timeoutMs: number
  /** How long a confirmation holds: see {@link Feed.isFresh}. */
  readonly maxStalenessMs: number
  /** Tells the control plane how far this replica has come. */
  readonly replicaId: string
  /** The number of the parameters that this replica hashes with: see {@link COST_LOCK}. */
  readonly hashCost: number
  /** How long changes are kept. A replica that was away for longer starts anew. */
  readonly retentionMs: number
  /**
   * Nothing counts as told before this is over.
   *
   * @param position of who has been told these as well
   */
  readonly onChanges: (changes: readonly Change[], position: string) => Promise<void>
  /** Anything may have changed, and why nobody can say what. Takes effect at once. */
  readonly onReset: (why: ResetReason) => void
  /** Everything that was committed before a poll was sent has been told. */
  readonly onConfirmed: () => void
  /** Changes that a snapshot saw are old enough to be removed. */
  readonly onOld: (snapshot: string) => void
  /** Called after each poll. */
  readonly onPolled?: ((seconds: number, changes: number) => void) | undefined
  readonly clock: Clock
  readonly log: FastifyBaseLogger
}

/** What a poll saw, and what had changed since the one before. */
interface Page {
  /** Which transactions were over, as PostgreSQL writes it. */
  readonly snapshot: string
  readonly now: Date
  readonly history: string
  /** Whether nothing can be written, so that the next confirmation fails. */
  readonly is_read_only: boolean
  /** `null` on a standby. */
  readonly timeline: string | null
  /** How often this replica has confirmed the feed, as text; `null` when its row is not there. */
  readonly beat: string | null
  /** Whether changes that the poll before did not see may have been removed. */
  readonly is_swept: boolean
  /** An id that is `null` is every key. More than {@link MAX_CHANGED} are not all. */
  readonly changed: readonly (Change | { readonly id: null })[]
}

/** Answer to {@link MISSED}. */
interface Missing {
  readonly history: string
  readonly missed: readonly (Page['changed'] | null)[]
}

/** Longest wait for a database that does not answer, when all that is left to do is to say goodbye. */
const STOP_TIMEOUT_MS = 1000
/** Between two attempts to connect, at most. */
const RECONNECT_MS = 1000

/** How old a position may be to be gone on from. Changes are kept for much longer, by whatever clock. */
const MAX_AWAY_MS = 600_000
/** More changes than this are not told one by one: to take everything for changed costs less. */
const MAX_CHANGED = 10_000
/** Token of the history, number of the server's run, database's time and snapshot; the numbers in base 36. */
const POSITION = /^([\w-]{11})\.([0-9a-z]{1,6})\.([0-9a-z]{1,10})\.(\d{1,20}:\d{1,20}:[\d,]*)$/
/** Longest wait for a poll that is to say which history is the feed's. */
const DOUBT_MS = 1000
/** What is notified within this after a poll was sent is polled together. A change that comes alone is polled at once. */
const GATHER_MS = 50
/** How many times within the bound a replica confirms that nothing was new. */
const CONFIRMATIONS_IN_BOUND = 4

/**
 * What changed that a snapshot did not see: by transactions that began after it, and by those that it saw under way. An index look-up
 * for each, so that an old transaction that is still open, in whatever database of the server, makes nobody read again what has
 * changed since it began. Whose each key is, is looked up by the primary key: without its OFFSET, the join could be planned as a walk through all keys.
 */
const changedSince = (snapshot: string) => `
  SELECT coalesce(json_agg(json_build_object('id', key_id, 'kind', kind, 'org_id', org_id)), '[]')
  FROM (
    (SELECT key_id FROM changes WHERE xid >= pg_snapshot_xmax(${snapshot}) ORDER BY xid LIMIT ${MAX_CHANGED + 1})
    UNION ALL (SELECT key_id FROM changes WHERE xid = ANY (ARRAY(SELECT pg_snapshot_xip(${snapshot}))))
    LIMIT ${MAX_CHANGED + 1}
  ) unseen LEFT JOIN LATERAL (SELECT kind, org_id FROM keys WHERE id = key_id OFFSET 0) whose ON true`

/** Whether changes may have been removed that a snapshot did not see. */
const isSwept = (snapshot: string) => `coalesce((SELECT swept_below > pg_snapshot_xmin(${snapshot}) FROM change_horizon), true)`

/** A statement that is sent with each change, and planned once a connection. */
interface NamedStatement {
  readonly name: string
  readonly text: string
}
/** No plan of theirs would be better for knowing the values, and none may be a walk through a table. */
export const PLAN_ONCE = 'SET plan_cache_mode = force_generic_plan; SET enable_seqscan = off; SET jit = off'
/** What the client was told by who answers it at the other end is its own process, where no pooler is in between. */
const BACKEND = 'SELECT pg_backend_pid() AS pid'

/**
 * One statement, so that what is found and what was seen are of one snapshot. Where it is to confirm as well, what it confirms is what the
 * poll before saw, which has been applied; the number of confirmations that it reads is the one before.
 */
export const POLL: NamedStatement = {
  name: 'poll',
  text: `
  SELECT pg_current_snapshot()::text AS snapshot, clock_timestamp() AS now, ${HISTORY_IN_LINE} AS history, ${isSwept('$1::pg_snapshot')} AS is_swept,
         current_setting('transaction_read_only')::boolean AS is_read_only, CASE WHEN $3 THEN current_timeline() END AS timeline, (SELECT beat FROM replicas WHERE id = $2) AS beat, (${changedSince('$1::pg_snapshot')}) AS changed,
         CASE WHEN $4 THEN confirm_feed($2, $5, $1, $6, $7) END`,
}

/** Runs of this server that somebody follows at this moment. Locks are gone with a crash, and are not on a standby. */
const RUNS = `
  SELECT objid::bigint::int AS run FROM pg_locks JOIN pg_database ON pg_database.oid = pg_locks.database AND datname = current_database()
  WHERE locktype = 'advisory' AND classid = ${RUN_LOCK} AND objsubid = 2 AND granted`
/** The lock of the parameters comes first: a follower without it would be one of the previous release. */
const JOIN_RUN = `SELECT pg_advisory_lock_shared(${COST_LOCK}, $2), pg_advisory_lock_shared(${RUN_LOCK}, $1)`

/**
 * What each has missed of those who come back, in the order in which they are given: all of it, or so much that it is too much. `null` where
 * that cannot be said.
 */
const MISSED = `
  SELECT ${HISTORY} AS history, json_agg(CASE WHEN run IN (${RUNS}) AND NOT ${isSwept('since')} THEN (${changedSince('since')}) END ORDER BY nth) AS missed
  FROM unnest($1::pg_snapshot[], $2::int[]) WITH ORDINALITY AS asked (since, run, nth)`
/** SQLSTATE of a snapshot that is none. */
const NO_SNAPSHOT = '22P02'

const CONFIRM: NamedStatement = { name: 'confirm', text: 'SELECT confirm_feed($1, $2, $3::pg_snapshot, $4, $5)' }
const LEAVE = 'SELECT leave_feed($1, $2)'
/** Lets the database compare what it has with what this replica knows. */
const RECALL = 'SELECT recall_feed($1, $2, $3, $4)'
/** Spares every statement from finding out anew that this is the accepted database. */
const VERIFY = 'SELECT verify_history()'

export class Feed {
  /** When the poll was sent that vouched last. */
  #confirmedAt = -Infinity
  /** That, or the confirmation by which receipts waited for this replica then, whichever was sent sooner. */
  #freshSince = -Infinity
  /** How often the clock had jumped when it was sent. */
  #confirmedJumps = -1
  /** The database's clock at that poll. */
  #databaseTime = 0
  /** When the last poll was sent whose page was told. */
  #polledAt = -Infinity
  /** When the last confirmation was sent, and its number in the row: receipts wait for this replica for as long as the bound after it. */
  #counted: { readonly at: number; readonly jumps: number; readonly beat: number } | undefined
  /** Whether something was read that is of another history. Until the two agree again, nothing is vouched for. */
  #isInDoubt = false
  #doubtedAt = -Infinity
  /** Whether the database that the feed is at takes no writes: a standby, or a primary that another one has taken over from. */
  #isReadOnly = false
  /** Those who wait for a poll to say which history is the feed's. */
  #doubting: { readonly at: number; readonly resolve: () => void }[] = []
  #client: Client | undefined
  /** Whether the connection is one with PostgreSQL itself: a pooler may lose what is prepared and set in a session. */
  #isDirect = false
  /** The run of the server that this connection is of: only snapshots of one run can be compared. */
  #run = 0
  /** Those who came back and wait for what they missed. */
  readonly #missed = new Missed((positions) => this.#findMissed(positions))
  /** What has been told last. */
  #page: Page | undefined
  /** What the last poll named, of this connection or of one before. */
  #history: string | undefined
  #historyToken = ''
  /** The confirmation that followed the last change, and the timeline that it was made in: a database without it went back. */
  #known: { readonly timeline: string | null; readonly beat: number } | undefined
  #stopped = false
  #lostAt: number | undefined
  #lostBy: string | undefined
  /** Since the start: how often the connection was lost, everything was dropped, and the history became another one. */
  readonly counts = { losses: 0, resets: 0, historyChanges: 0 }
  /** When the last poll was sent. */
  #sentAt = -Infinity
  /** Polls when it is over. */
  #gathering: NodeJS.Timeout | undefined
  #wake = () => {}
  /** A wake-up that came while nobody slept. */
  #woken = false
  #running: Promise<void> | undefined
  /** Proves to the database that this replica's row is its own. */
  readonly #secret = randomBytes(32)

  constructor(private readonly parts: FeedParts) {
    parts.clock.onJump(() => this.#poke())
  }

  start(): void {
    this.#running = this.#followUntilStopped()
  }

  /** Ends, and takes this replica out of the count. */
  async stop(): Promise<void> {
    this.#stopped = true
    this.#wake()
    await Promise.race([this.#running, sleep(STOP_TIMEOUT_MS, undefined, { ref: false })])
    await this.#disconnect()
  }

  /**
   * Whether everything that was committed `maxStalenessMs` ago or earlier has been applied, receipts wait for this replica, and what is
   * read from the database is of the feed's history. Counts from before the poll was sent, and from before the confirmation was.
   *
   * @param at a reading of the clock, made now: a jump that nobody has read yet is not known
   */
  isFresh(at = this.parts.clock.now()): boolean {
    return at - this.#freshSince <= this.parts.maxStalenessMs && this.#confirmedJumps === this.parts.clock.jumps && !this.#isInDoubt
  }

  /**
   * The run of the server that this replica follows in; `undefined` while it does not. Two snapshots can be compared that were taken while
   * the same run was followed: see {@link RUNS}.
   */
  get run(): number | undefined {
    return this.#page && this.#run
  }

  /** What the connection was lost by the last time, in no more words than a log line has for it. */
  get lostBy(): string | undefined {
    return this.#lostBy
  }

  /** When everything that has been told was asked for. */
  get confirmedAt(): number {
    return this.#confirmedAt
  }

  /** A short name of the history that is followed, for others who compare; empty before the first poll. */
  get historyToken(): string {
    return this.#historyToken
  }

  /**
   * Whether something that was read from the database may be used: it is of the history that the feed is of, or was of
   * before its connection was lost. Before it ever had one, there is nothing to hold it against.
   */
  isOfHistory(history: string): boolean {
    if (this.#history === undefined) return true
    if (history !== this.#history) return false
    this.#isInDoubt = false
    return true
  }

  /**
   * Whether nothing may be answered by what the database says: it takes no writes, so that this replica cannot confirm that it
   * follows. Another one may be the primary by now.
   */
  get isAtReadOnlyDatabase(): boolean {
    return this.#isReadOnly
  }

  /**
   * Something was read that is of another history. Nothing is vouched for until something is read that is of the feed's;
   * and the feed looks at once where it is itself, for it may be behind. Where that has not helped for a second, it
   * connects anew: its own connection may be the one that leads to the wrong server.
   *
   * @returns when a poll that was sent from now on is over, or a second has passed
   */
  async doubt(): Promise<void> {
    const at = this.parts.clock.now()
    if (!this.#isInDoubt) this.#doubtedAt = at
    else if (at - this.#doubtedAt > DOUBT_MS) {
      this.#doubtedAt = at
      if (this.#client) socketOf(this.#client).destroy()
    }
    this.#isInDoubt = true
    const polled = new Promise<void>((resolve) => this.#doubting.push({ at, resolve }))
    this.#poke()
    await Promise.race([polled, sleep(DOUBT_MS, undefined, { ref: false })])
  }

  /** Polls soon, and not only when it is time to. */
  poll(): void {
    this.#pokeSoon()
  }

  /** What has been told so far, for {@link missedSince} of any replica; `undefined` before the first poll. */
  get position(): string | undefined {
    return this.#page && this.#positionAfter(this.#page)
  }

  #positionAfter({ now, snapshot }: Page): string {
    return [this.#historyToken, this.#run.toString(36), now.getTime().toString(36), snapshot].join('.')
  }

  /**
   * What somebody has missed who was told everything up to a position. When this resolves, everything that has been told
   * here is in it, for it goes over the connection that polls, in its turn. What the next poll tells may be in it as well: it is told
   * twice then, which drops a key twice.
   *
   * @returns `undefined` when that cannot be said: take everything for changed
   */
  missedSince(position: string): Promise<readonly Change[] | undefined> {
    return this.#missed.since(position)
  }

  async #findMissed(positions: readonly string[]): Promise<ReadonlyMap<string, readonly Change[]>> {
    const client = this.#client
    const asked = positions.map((position) => this.#parsePosition(position)).filter((one) => one !== undefined)
    if (!client || asked.length === 0) return new Map()
    try {
      const { rows } = await client.query<Missing>(MISSED, [asked.map(({ snapshot }) => snapshot), asked.map(({ run }) => run)])
      const { history, missed } = rows[0]!
      if (history !== this.#page?.history || client !== this.#client) return new Map()
      return new Map(asked.flatMap(({ position }, i) => (isTold(missed[i]) ? [[position, distinct(missed[i])]] : [])))
    } catch (error) {
      // Nobody was given it here: the others are not to suffer for it.
      if (causeOf(error) !== NO_SNAPSHOT || asked.length === 1) throw error
      const found = new Map<string, readonly Change[]>()
      for (const { position } of asked) for (const [of, missed] of await this.#findMissed([position]).catch(() => [])) found.set(of, missed)
      return found
    }
  }

  /** `undefined` where it is none, none of this history, or too old. */
  #parsePosition(position: string): { readonly position: string; readonly run: number; readonly snapshot: string } | undefined {
    const [, token, run, time, snapshot] = POSITION.exec(position) ?? []
    if (!this.#page || token !== this.#historyToken || Math.abs(this.now() - parseInt(time!, 36)) > MAX_AWAY_MS) return undefined
    return { position, run: parseInt(run!, 36), snapshot: snapshot! }
  }

  /**
   * The database's time in milliseconds, from its last answer and the time since the question: at most a round trip
   * fast, and never slow, so that no key outlives its end here. Nobody's setting of a clock on this machine moves it.
   */
  now(at = this.parts.clock.now()): number {
    return this.#databaseTime + (at - this.#confirmedAt)
  }

  /** Connects, follows until something breaks, and connects again. */
  async #followUntilStopped(): Promise<void> {
    for (let failures = 0; !this.#stopped; ) {
      try {
        await this.#connect()
        await this.#follow(() => (failures = 0))
        await this.#client?.query(LEAVE, [this.parts.replicaId, this.#secret])
      } catch (error) {
        if (isReadOnly(error)) this.#isReadOnly = true
        if (failures++ === 0 && !this.#stopped) this.#tellThatLost(error)
      } finally {
        await this.#disconnect()
      }
      // What woke the poll that failed is no reason not to wait: a database that is away would be asked for all the time.
      this.#woken = false
      if (!this.#stopped && failures > 0) await this.#sleep(Math.min(25 * 2 ** failures, RECONNECT_MS))
    }
  }

  #tellThatLost(error: unknown): void {
    this.counts.losses++
    this.#lostAt ??= performance.now()
    this.#lostBy = causeOf(error)
    this.parts.log.warn({ err: error }, 'the change feed was lost; connecting again')
  }

  #tellThatFound(): void {
    if (this.#lostAt === undefined) return
    this.parts.log.info({ lost_ms: Math.round(performance.now() - this.#lostAt) }, 'the change feed was found again')
    this.#lostAt = undefined
  }

  async #connect(): Promise<void> {
    const { url, timeoutMs } = this.parts
    const client = new Client({
      connectionString: url,
      application_name: 'mecha-keys feed',
      connectionTimeoutMillis: timeoutMs,
      // What is given up here must not go on there: a locked table would gather one connection after another.
      ...Object.fromEntries(SERVER_TIMEOUTS.map((name) => [name, timeoutMs])),
      query_timeout: timeoutMs + 500,
      keepAlive: true,
    })
    this.#client = client
    const wake = () => this.#poke()
    client.on('notification', () => this.#pokeSoon()).on('error', wake).on('end', wake)
    await client.connect()
    await commitDurably(client)
    const { rows: backends } = await client.query<{ pid: number }>(BACKEND)
    this.#isDirect = backends[0]!.pid === processOf(client)
    if (this.#isDirect) await client.query(PLAN_ONCE)
    await client.query('LISTEN mecha_keys_changes')
    const { rows } = await client.query<{ run: number }>(`${RUNS} ORDER BY 1 LIMIT 1`)
    this.#run = rows[0]?.run ?? randomInt(1, 2 ** 31 - 1)
    await client.query(JOIN_RUN, [this.#run, this.parts.hashCost])
    if (this.#known) await client.query(RECALL, [this.parts.replicaId, this.#secret, this.#known.timeline, this.#known.beat])
    await client.query(VERIFY)
  }

  /** Polls until told to stop: when notified, and every so often. */
  async #follow(onPolled: () => void): Promise<void> {
    const { clock, retentionMs } = this.parts
    /** The snapshot below which to sweep, when it is old enough. */
    let old: { readonly at: number; readonly snapshot: string } | undefined
    /** Whether somebody waits for the next poll. */
    let isAskedFor = true
    while (!this.#stopped) {
      const sentAt = clock.now()
      const sentJumps = clock.jumps
      this.#sentAt = sentAt
      const last: Page | undefined = this.#page
      // Asked for or not, a confirmation of what is new follows.
      const isConfirming = last !== undefined && !isHeld(last.history) && !isAskedFor && this.#isSilentForLong(sentAt)
      const polled = await this.#poll(last, isConfirming, sentAt, sentJumps)
      const { page } = polled
      let { isCounted } = polled
      const isHeldBefore = last !== undefined && isHeld(last.history)
      const isNews = await this.#take(page, last, last !== undefined && sentAt - this.#polledAt < retentionMs)
      this.#polledAt = sentAt
      if (isHeld(page.history) !== isHeldBefore) this.#tellHold(isHeldBefore)
      if (isHeld(page.history)) {
        // It confirms nothing, and goes on as soon as the database is accepted.
        this.#confirmedAt = this.#freshSince = -Infinity
        this.#doubting = this.#doubting.filter(({ at, resolve }) => at > sentAt || void resolve())
        onPolled()
        isAskedFor = await this.#sleep(this.parts.pollMs)
        continue
      }
      if (isNews || isAskedFor || this.#isConfirmationDue(page, sentAt, sentJumps)) isCounted = (await this.#confirm(page, sentJumps)) && isCounted
      if (isNews || page.timeline !== this.#known?.timeline || this.#counted!.beat < this.#known.beat) this.#known = { timeline: page.timeline, beat: this.#counted!.beat }
      isAskedFor = false
      // Until just now receipts did not wait for this replica, so this poll may be from before one: only the next vouches.
      if (!isCounted) continue
      // Not before that is written: a receipt counts on it that who has been silent for the bound is not fresh.
      this.#databaseTime = page.now.getTime()
      this.#confirmedAt = sentAt
      this.#freshSince = Math.min(sentAt, this.#counted!.at)
      this.#confirmedJumps = sentJumps
      this.#doubting = this.#doubting.filter(({ at, resolve }) => at > sentAt || void resolve())
      this.parts.onConfirmed()
      this.#tellThatFound()
      onPolled()
      old ??= { at: sentAt, snapshot: page.snapshot }
      if (sentAt - old.at >= retentionMs) {
        this.parts.onOld(old.snapshot)
        old = undefined
      }
      isAskedFor = await this.#sleep(this.#pollMs)
    }
  }

  get #pollMs(): number {
    const { pollMs, quietPollMs } = this.parts
    return (this.#isDirect && quietPollMs?.()) || pollMs
  }

  /** Whether a confirmation would be late at the next poll: receipts wait for this replica by its row, and only as long as that moves. */
  #isSilentForLong(at: number): boolean {
    return this.#counted === undefined || at + this.#pollMs - this.#counted.at > this.parts.maxStalenessMs / CONFIRMATIONS_IN_BOUND
  }

  /**
   * Whether a confirmation is to be written though nothing was new. Where the row is not as it was written last, or nobody knows how long
   * ago that was, it is written as well; and where nothing can be written, for that has to be known.
   */
  #isConfirmationDue(page: Page, sentAt: number, sentJumps: number): boolean {
    const { beat, jumps } = this.#counted ?? {}
    return beat === undefined || Number(page.beat) !== beat || jumps !== sentJumps || page.timeline !== this.#known?.timeline || page.is_read_only || this.#isSilentForLong(sentAt)
  }

  /**
   * Writes that everything has been applied that a poll saw.
   *
   * @param sentJumps how often the clock had jumped when the poll was sent
   * @returns whether receipts waited for this replica all the time since its confirmation before
   */
  async #confirm(page: Page, sentJumps: number): Promise<boolean> {
    const at = this.parts.clock.now()
    await this.#query(CONFIRM, this.#confirmationOf(page))
    return this.#hasConfirmed(page.beat, at, sentJumps)
  }

  /** What {@link CONFIRM} takes. */
  #confirmationOf({ snapshot, history }: Page): unknown[] {
    const { replicaId, maxStalenessMs } = this.parts
    return [replicaId, this.#secret, snapshot, history, Math.ceil(maxStalenessMs)]
  }

  /**
   * @param beat what the row said before
   * @param at when the confirmation was sent
   * @returns whether receipts waited for this replica all the time since its confirmation before
   */
  #hasConfirmed(beat: string | null, at: number, sentJumps: number): boolean {
    const { clock, maxStalenessMs } = this.parts
    const before = this.#counted
    const writtenAt = clock.now()
    this.#isReadOnly = false
    this.#counted = { at, jumps: sentJumps, beat: Number(beat ?? 0) + 1 }
    return beat !== null && before !== undefined && before.jumps === clock.jumps && writtenAt - before.at <= maxStalenessMs
  }

  #tellHold(isOver: boolean): void {
    if (isOver) this.parts.log.info('the database was accepted: answering again')
    else this.parts.log.error('the database went back, and may have forgotten revocations: nothing is answered until mecha-keys restore replay FILE, or mecha-keys restore waive')
  }

  /**
   * Tells what a poll found. The position is the page's when all of it has been told.
   *
   * @returns whether anything may have changed
   */
  async #take(page: Page, last: Page | undefined, isRecent: boolean): Promise<boolean> {
    const before = this.#history
    if (before !== undefined && page.history !== before) this.counts.historyChanges++
    if (page.history !== before) this.#historyToken = hash('sha256', page.history, 'base64url').slice(0, 11)
    this.#history = page.history
    const why = resetReason(page, last, before, isRecent)
    if (!why) {
      const changes = distinct(page.changed as readonly Change[])
      if (changes.length > 0) await this.parts.onChanges(changes, this.#positionAfter(page))
      this.#page = page
      return changes.length > 0
    }
    this.#page = page
    this.counts.resets++
    // What is read from now on is held against this page: nothing that was read before is left to be in doubt.
    this.#isInDoubt = false
    this.parts.onReset(why)
    return true
  }

  /**
   * The first poll of a connection asks for nothing: it is followed by a reset. A server that takes writes stays in its timeline.
   *
   * @param isConfirming whether what the poll before saw is confirmed as well, in the same statement
   * @returns what it found, and whether receipts waited for this replica until it had confirmed, if it did
   */
  async #poll(last: Page | undefined, isConfirming: boolean, at: number, sentJumps: number): Promise<{ readonly page: Page; readonly isCounted: boolean }> {
    const sentAt = performance.now()
    const known = last?.timeline ?? null
    const [replicaId, secret, snapshot = null, history = null, bound] = last ? this.#confirmationOf(last) : [this.parts.replicaId]
    const { rows } = await this.#query<Page>(POLL, [snapshot, replicaId, known === null, isConfirming, secret ?? null, history, bound ?? null])
    const page = { ...rows[0]!, timeline: known ?? rows[0]!.timeline }
    this.parts.onPolled?.((performance.now() - sentAt) / 1000, page.changed.length)
    if (!isConfirming) return { page, isCounted: true }
    const isCounted = this.#hasConfirmed(page.beat, at, sentJumps)
    return { page: { ...page, beat: String(this.#counted!.beat) }, isCounted }
  }

  #query<Row extends object>(statement: string | NamedStatement, values: unknown[] = []) {
    if (!this.#client) throw new Error('the change feed is not connected')
    const text = typeof statement === 'string' ? statement : statement.text
    return this.#client.query<Row>(typeof statement !== 'string' && this.#isDirect ? { ...statement, values } : { text, values })
  }

  /** Polls now, or as soon as what is under way is over. */
  #poke(): void {
    this.#woken = true
    this.#wake()
  }

  /** Polls now, unless the last poll was a moment ago: then in a moment, with what is notified until then. */
  #pokeSoon(): void {
    const left = this.#sentAt + GATHER_MS - this.parts.clock.now()
    if (left <= 0) return this.#poke()
    if (this.#gathering) return
    this.#gathering = setTimeout(() => {
      this.#gathering = undefined
      this.#poke()
    }, left).unref()
  }

  /** Says goodbye, and does not wait for an answer: the other end may be gone. */
  async #disconnect(): Promise<void> {
    const client = this.#client
    this.#client = undefined
    this.#page = undefined
    if (!client) return
    // Whatever it still has to say wakes nobody.
    for (const event of ['notification', 'error', 'end']) client.removeAllListeners(event)
    client.on('error', () => {})
    clearTimeout(this.#gathering)
    this.#gathering = undefined
    await Promise.race([client.end().catch(() => {}), sleep(100, undefined, { ref: false })])
    socketOf(client).destroy()
  }

  /**
   * Sleeps until woken, for `ms` at most.
   *
   * @returns whether it was woken
   */
  async #sleep(ms: number): Promise<boolean> {
    if (!this.#woken && !this.#stopped)
      await new Promise<void>((resolve) => {
        const timer = setTimeout(resolve, ms)
        this.#wake = () => {
          clearTimeout(timer)
          resolve()
        }
      })
    const wasWoken = this.#woken
    this.#woken = false
    return wasWoken
  }
}

/** Why a poll does not go on where the one before ended; nothing where it does. */
function resetReason(page: Page, last: Page | undefined, history: string | undefined, isRecent: boolean): ResetReason | undefined {
  if (history === undefined) return 'start'
  if (page.history !== history) return 'other_history'
  if (!last) return 'reconnected'
  if (!isRecent) return 'away_too_long'
  if (page.is_swept) return 'changes_removed'
  if (page.changed.length > MAX_CHANGED) return 'too_many_changes'
  return page.changed.some(({ id }) => id === null) ? 'every_key_changed' : undefined
}

/** What the other end said that it is, when the connection was made. */
function processOf(client: Client): number | null {
  return (client as unknown as { processID: number | null }).processID
}

/** Whether what changed can be told one by one. */
function isTold(changed: Page['changed'] | null | undefined): changed is readonly Change[] {
  return changed != null && changed.length <= MAX_CHANGED && changed.every(({ id }) => id !== null)
}

function socketOf(client: Client): Socket {
  return (client as unknown as { connection: { stream: Socket } }).connection.stream
}

function distinct<T extends { readonly id: unknown }>(changes: readonly T[]): T[] {
  return [...new Map(changes.map((change) => [change.id, change])).values()]
}
