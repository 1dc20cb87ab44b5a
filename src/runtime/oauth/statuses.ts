/**
 * The statuses of all keys that were ever exchanged, two bits each, in memory. They are read in full once, in slices, and from then on only
 * where something changed: by what the snapshot of the last reading did not see, as the change feed reads ({@link Feed}), and by what has
 * expired since. They are read in full again where that cannot be told: the server was started anew, the history is another one, or too much changed.
 */

import type { FastifyBaseLogger } from 'fastify'
import { Problem } from '../../errors.js'
import type { Feed } from '../changes/feed.js'
import type { OfHistory } from '../../db/history.js'
import type { StatusChanges, StatusPosition, Statuses as Found } from './store.js'

export interface StatusesParts {
  /** What may have changed since a position; without one, where to begin. */
  readonly findChanges: (since: StatusPosition | undefined) => Promise<StatusChanges>
  /** The statuses from one index on and below another that are not 0. */
  readonly find: (from: number, below: number) => Promise<OfHistory & Found>
  readonly feed: Pick<Feed, 'run'>
  /** How soon each status is compared with the database, whatever was told; and how soon they are forgotten that nobody asks for. */
  readonly afterMs: number
  readonly log: FastifyBaseLogger
}

/** Bits of a status. */
export const BITS = 2
const PER_BYTE = 8 / BITS
const MASK = 2 ** BITS - 1
/** A list of fewer tells how many there are. */
const LEAST_PLACES = 1024
/** Indexes that are read at a stretch: 25 ms of the database, and one of this process. */
const SLICE = 8192

interface Known {
  bits: Buffer
  position: StatusPosition
}

export class Statuses {
  #known: Known | undefined
  #version = 0
  #looking: Promise<StatusPosition> | undefined
  /** What reads, one after another: what is read later must not be overwritten by what was read before. */
  #turn: Promise<unknown> = Promise.resolve()
  /** The slice that is compared next. */
  #next = 0
  #timer: NodeJS.Timeout | undefined
  #askedAt = -Infinity
  #isStopped = false

  constructor(private readonly parts: StatusesParts) {}

  /** Another one whenever a status has changed. */
  get version(): number {
    return this.#version
  }

  /**
   * The statuses as they were looked at, least significant bits first (section 4.1 of the draft). The length says the number of indexes to a
   * power of two only.
   */
  copy(): Buffer {
    return Buffer.from(this.#known!.bits)
  }

  /**
   * Reads what has changed.
   *
   * @returns of when the statuses are, at least
   */
  look(): Promise<StatusPosition> {
    this.#askedAt = performance.now()
    this.#looking ??= this.#inTurn(() => this.#look()).finally(() => (this.#looking = undefined))
    return this.#looking
  }

  stop(): void {
    this.#isStopped = true
    clearTimeout(this.#timer)
  }

  async #look(): Promise<StatusPosition> {
    const known = this.#known
    const found = await this.#findChanges(known?.position)
    if (known && isContinued(found, known.position)) this.#apply(known, found)
    else this.#known = await this.#readAll(found)
    if (!this.#timer) this.#scheduleComparison()
    return this.#known!.position
  }

  /**
   * Each slice is of after this began, so what was committed before is in it. Between two of them what changes is read on, as far as that can
   * be told: otherwise the next look reads in full again.
   */
  async #readAll(begin: StatusChanges & StatusPosition): Promise<Known> {
    const startedAt = performance.now()
    const known: Known = { bits: Buffer.alloc(lengthFor(begin.places)), position: begin }
    for (let from = 0; from < begin.places; from += SLICE) await this.#readSlice(known, from)
    this.#version++
    this.parts.log.info({ indexes: begin.places, ms: Math.round(performance.now() - startedAt) }, 'the status list was read in full')
    return known
  }

  async #readSlice(known: Known, from: number): Promise<void> {
    const slice = await this.parts.find(from, from + SLICE)
    const found = await this.#findChanges(known.position)
    if (slice.history !== known.position.history) throw anotherHistory()
    this.#version += Number(writeSlice(known.bits, from, slice))
    if (isContinued(found, known.position)) this.#apply(known, found)
  }

  async #findChanges(since: StatusPosition | undefined): Promise<StatusChanges & StatusPosition> {
    // Before it is sent: where the server is another one by then, nobody follows in this run any more.
    const run = this.parts.feed.run ?? since?.run ?? null
    return { ...(await this.parts.findChanges(since)), run }
  }

  #apply(known: Known, { places, indexes, statuses, history, snapshot, run, now }: StatusChanges & StatusPosition): void {
    const length = lengthFor(places)
    const isLonger = length > known.bits.length
    if (isLonger) known.bits = Buffer.concat([known.bits], length)
    const changed = indexes.filter((index, i) => write(known.bits, index, statuses[i]!))
    this.#version += Number(isLonger || changed.length > 0)
    known.position = { history, snapshot, run, now }
  }

  /** Each slice in its turn, all of them within the time: what nobody told of is found in the end. */
  #scheduleComparison(): void {
    const slices = Math.max(1, Math.ceil(((this.#known?.bits.length ?? 0) * PER_BYTE) / SLICE))
    // A tenth is for what comes in between.
    this.#timer = setTimeout(() => void this.#compare(slices), (0.9 * this.parts.afterMs) / slices).unref()
  }

  async #compare(slices: number): Promise<void> {
    if (performance.now() - this.#askedAt > this.parts.afterMs) this.#known = this.#timer = undefined
    if (!this.#known) return
    try {
      await this.#inTurn(() => this.#readSlice(this.#known!, (this.#next++ % slices) * SLICE))
    } catch (error) {
      // Without a database the list is not given for long, and what cannot be read on is read in full.
      this.parts.log.debug({ err: error }, 'the status list could not be compared with the database')
    }
    if (!this.#isStopped) this.#scheduleComparison()
  }

  #inTurn<T>(work: () => Promise<T>): Promise<T> {
    const turn = this.#turn.then(work)
    this.#turn = turn.catch(() => {})
    return turn
  }
}

function isContinued(found: StatusChanges, since: StatusPosition): boolean {
  return found.isComplete && found.history === since.history
}

/** In bytes. */
function lengthFor(places: number): number {
  let length = LEAST_PLACES
  while (length < places) length *= 2
  return length / PER_BYTE
}

/** Whether that changes anything. */
function write(bits: Buffer, index: number, status: number): boolean {
  const at = Math.floor(index / PER_BYTE)
  const shift = BITS * (index % PER_BYTE)
  const before = bits[at]!
  bits[at] = (before & ~(MASK << shift)) | (status << shift)
  return bits[at] !== before
}

/** Whether that changes anything. What is not named is 0. */
function writeSlice(bits: Buffer, from: number, { indexes, statuses }: Found): boolean {
  const slice = Buffer.alloc(SLICE / PER_BYTE)
  indexes.forEach((index, i) => write(slice, index - from, statuses[i]!))
  const before = bits.subarray(from / PER_BYTE, (from + SLICE) / PER_BYTE)
  if (before.equals(slice.subarray(0, before.length))) return false
  slice.copy(before)
  return true
}

function anotherHistory(): Problem {
  return new Problem('database_unavailable', 'The database became another one meanwhile. Try again in a moment.', { headers: { 'retry-after': '1' } })
}
