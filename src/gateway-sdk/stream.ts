/**
 * The service's stream of changes, as a gateway follows it.
 *
 * The bound is counted from the database's truth and not from the last byte: each confirmation says up to which moment
 * everything has been told, in milliseconds since the service opened the stream, and the service opened it no sooner than
 * this process asked for it. So nothing that a confirmation waits in on its way makes it look younger: no proxy, no
 * buffer of the kernel, and no process that was stopped. Age is what the one of this process's two clocks says that says
 * more; when one has jumped against the other, nothing is vouched for until a stream that was asked for afterwards confirms.
 *
 * It is one long file because it is one state: how fresh memory is follows from what the stream said, when it was opened and how it ended.
 */

import { setTimeout as sleep } from 'node:timers/promises'
import { createParser, type EventSourceMessage } from 'eventsource-parser'
import { hasJumped, JUMP_MS, moment, passed, type Moment } from './clock.js'
import { confirmationIn, keyIdsIn, notUnderstood, type Confirmation } from './stream-messages.js'
import { StreamLost, VerifierUnavailable, type StreamLossReason } from './errors.js'

export interface StreamDeps {
  /** Asks for the stream, from what was told last. */
  readonly open: (lastEventId: string | undefined, signal: AbortSignal) => Promise<AsyncIterable<Buffer>>
  /** How long a confirmation holds. */
  readonly maxStalenessMs: number
  /** These keys changed: told at this moment. */
  readonly onChanged: (keyIds: readonly string[], at: Moment) => void
  /** Anything may have changed up to this moment. */
  readonly onReset: (at: Moment) => void
  /** The stream was lost, or could not be had. Called once until it is there again. */
  readonly onLost: (loss: StreamLost) => void
}

/** After this long a stream is asked for anew: two clocks drift apart, by a tenth of a second in this time at worst. */
const LIFE_MS = 600_000
/** Between two attempts, at most. */
const MAX_PAUSE_MS = 2000
/** How often the clocks are looked at, at least. */
const TICK_MS = 250
/** How often the stream is asked for anew, at most, while answers come from another history. */
const DISPUTE_MS = 1000
/** A message of ten thousand keys has less than a tenth of it. */
const MAX_MESSAGE = 4 * 1024 * 1024

export class ChangeStream {
  /** Everything that was committed before this moment has been told: by the monotonic clock, and by the wall clock. */
  #confirmedMono = -Infinity
  #confirmedWall = -Infinity
  /** The database's time then. */
  #databaseTime: number | undefined
  #history: string | undefined
  /** Whether an answer came from another history since, and when the stream was last asked for anew because of that. */
  #isDisputed = false
  #disputedAt: Moment | undefined
  #freshSince: Date | undefined
  /** Why there is no stream now. */
  #loss: StreamLossReason | undefined
  #lastEventId: string | undefined
  #isStopped = false
  /** Ends what is waited for at the moment. */
  #interrupt = new AbortController()
  /** Called at the next confirmation. */
  readonly #waiting = new Set<() => void>()
  #running: Promise<void> | undefined

  constructor(private readonly deps: StreamDeps) {}

  start(): void {
    this.#running = this.#run()
  }

  async stop(): Promise<void> {
    this.#isStopped = true
    this.#interrupt.abort()
    await this.#running
  }

  /** Whether everything that was committed `maxStalenessMs` ago or earlier has been told. Takes numbers, for it is asked with each verify. */
  isFresh(mono = performance.now(), wall = Date.now()): boolean {
    const age = mono - this.#confirmedMono
    const ahead = wall - this.#confirmedWall - age
    return age <= this.deps.maxStalenessMs && age + ahead <= this.deps.maxStalenessMs && ahead <= JUMP_MS && ahead >= -JUMP_MS && !this.#isDisputed
  }

  /** How long the last confirmation still holds if nothing more is heard, and nothing speaks against it. */
  leftMs(at: Moment): number {
    return this.deps.maxStalenessMs - passed(this.#confirmed, at)
  }

  /** The history of the database that the stream tells of, where that was confirmed within the bound. */
  history(at: Moment): string | undefined {
    return this.leftMs(at) >= 0 ? this.#history : undefined
  }

  /** The database's time in milliseconds: at most a round trip fast, and never slow. This machine's where it is not known yet. */
  now(mono = performance.now(), wall = Date.now()): number {
    if (this.#databaseTime === undefined) return wall
    const byMono = mono - this.#confirmedMono
    const byWall = wall - this.#confirmedWall
    return this.#databaseTime + (byMono > byWall ? byMono : byWall)
  }

  /** Whether the clocks have jumped since {@link now} was set by the database's. */
  isClockInDoubt(at = moment()): boolean {
    return this.#databaseTime !== undefined && hasJumped(this.#confirmed, at)
  }

  /** When it became fresh, if it is. */
  get freshSince(): Date | undefined {
    return this.isFresh() ? this.#freshSince : undefined
  }

  /** Up to when everything has been told, on this machine's clock. */
  get confirmedAt(): Date | undefined {
    return this.#databaseTime === undefined ? undefined : new Date(this.#confirmedWall)
  }

  /** Why there is no stream now, if there is none. */
  get loss(): StreamLossReason | undefined {
    return this.#loss
  }

  /** An answer came from another history. Nothing is vouched for until {@link agree}, and the stream is asked for anew. */
  dispute(): void {
    const at = moment()
    this.#isDisputed = true
    if (this.#disputedAt && passed(this.#disputedAt, at) < DISPUTE_MS) return
    this.#disputedAt = at
    this.#interrupt.abort(new StreamLost('other_history', 'service_unavailable', 'an answer came from another history of the database than the stream of changes'))
  }

  /** An answer came from the history that the stream tells of. */
  agree(): void {
    if (!this.#isDisputed) return
    this.#isDisputed = false
    this.#freshSince = new Date()
  }

  /** Resolves at the next confirmation, or when so much has passed. */
  nextConfirmation(ms: number): Promise<void> {
    return new Promise((resolve) => {
      const done = () => {
        clearTimeout(timer)
        this.#waiting.delete(done)
        resolve()
      }
      const timer = setTimeout(done, ms)
      this.#waiting.add(done)
    })
  }

  get #confirmed(): Moment {
    return { mono: this.#confirmedMono, wall: this.#confirmedWall }
  }

  async #run(): Promise<void> {
    for (let failures = 0; !this.#isStopped; ) {
      try {
        await this.#follow(() => {
          failures = 0
          this.#loss = undefined
        })
      } catch (error) {
        if (this.#isStopped) return
        const loss = asLoss(error)
        this.#loss = loss.reason
        if (failures++ === 0) this.deps.onLost(loss)
      }
      await this.#pause(failures)
    }
  }

  /** Follows one stream to its end. */
  async #follow(onConfirmed: () => void): Promise<void> {
    const end = (this.#interrupt = new AbortController())
    const { maxStalenessMs } = this.deps
    const opened = moment()
    let heard = opened
    let isOld = false
    const look = () => {
      const at = moment()
      if (hasJumped(opened, at)) end.abort(jumped())
      // In half of the bound, so that there is time to have another one before anything is refused.
      else if (passed(heard, at) > maxStalenessMs / 2) end.abort(new StreamLost('silent', 'service_unreachable', 'the stream of changes is silent'))
      else if (passed(opened, at) > LIFE_MS) {
        isOld = true
        end.abort()
      }
    }
    const timer = setInterval(look, Math.min(TICK_MS, Math.ceil(maxStalenessMs / 8))).unref()
    let isOpen = false
    try {
      const chunks = await this.deps.open(this.#lastEventId, end.signal)
      isOpen = true
      const decoder = new TextDecoder()
      const parser = createParser({
        maxBufferSize: MAX_MESSAGE,
        onEvent: (message) => {
          if (!this.#take(message, opened)) return
          heard = moment()
          onConfirmed()
        },
        onError: (error) => {
          if (error.type === 'max-buffer-size-exceeded') throw notUnderstood(error)
        },
      })
      for await (const chunk of chunks) parser.feed(decoder.decode(chunk, { stream: true }))
      throw new StreamLost('ended', 'service_unreachable', 'the stream of changes has ended')
    } catch (error) {
      if (isOld) return
      if (end.signal.aborted) throw end.signal.reason
      // However it ended: a machine that was suspended loses its connections as well.
      if (hasJumped(opened, moment())) throw jumped()
      throw isOpen && !(error instanceof VerifierUnavailable) ? new StreamLost('broken', 'service_unreachable', 'the stream of changes broke', { cause: error }) : error
    } finally {
      clearInterval(timer)
      end.abort()
    }
  }

  /** @returns whether it confirmed more than was confirmed before */
  #take({ event, data, id }: EventSourceMessage, opened: Moment): boolean {
    const at = moment()
    let isMore = false
    try {
      if (event === 'changed') this.deps.onChanged(keyIdsIn(data), at)
      if (event === 'reset') this.deps.onReset(at)
      if (event === 'confirmed') isMore = this.#confirm(confirmationIn(data), opened, at)
    } catch (error) {
      // What was not understood may have been a change.
      this.#lastEventId = undefined
      throw notUnderstood(error)
    }
    this.#lastEventId = id ?? this.#lastEventId
    return isMore
  }

  #confirm({ confirmed_ms, database_time, history }: Confirmation, opened: Moment, at: Moment): boolean {
    const before = this.#confirmed
    const isOther = history !== this.#history && this.#databaseTime !== undefined
    this.#history = history
    // What is remembered was read from another history.
    if (isOther) this.deps.onReset(at)
    // Nothing is confirmed that is still to come.
    const ms = Math.min(confirmed_ms, at.mono - opened.mono)
    const confirmed = { mono: opened.mono + ms, wall: opened.wall + ms }
    if (!isOther && confirmed.mono <= before.mono && !hasJumped(before, at)) return false
    const wasFresh = this.isFresh(at.mono, at.wall)
    this.#confirmedMono = confirmed.mono
    this.#confirmedWall = confirmed.wall
    this.#databaseTime = database_time
    if (!wasFresh) this.#freshSince = new Date(at.wall)
    for (const done of this.#waiting) done()
    return true
  }

  async #pause(failures: number): Promise<void> {
    if (this.#isStopped) return
    this.#interrupt = new AbortController()
    const longest = Math.min(50 * 2 ** failures, MAX_PAUSE_MS, this.deps.maxStalenessMs / 4)
    // Not all gateways at once, when a replica ends that had them all.
    await sleep(longest * (0.5 + Math.random() / 2), undefined, { signal: this.#interrupt.signal, ref: false }).catch(() => {})
  }
}

function jumped(): StreamLost {
  return new StreamLost('clock_jumped', 'service_unavailable', 'a clock of this machine has jumped')
}

/** What ended a stream, or kept it from being had. */
function asLoss(error: unknown): StreamLost {
  if (error instanceof StreamLost) return error
  const { code, message } = error instanceof VerifierUnavailable ? error : new VerifierUnavailable('service_unreachable', 'the service does not answer')
  const reason = code === 'credential_refused' ? code : code === 'service_unavailable' ? 'unavailable' : 'unreachable'
  return new StreamLost(reason, code, message, { cause: error })
}
