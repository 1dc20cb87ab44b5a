/**
 * Streams of changes to gateways: the feed, as far as it is theirs to know. A gateway learns the public ids of keys of its
 * own organization that changed, and up to which moment it has been told everything.
 *
 * Nothing is kept for a gateway that does not read: its stream is ended, and goes on where it ended when it comes back.
 */

import type { ServerResponse } from 'node:http'
import type { Gateway } from '../gateway-auth/authenticate.js'
import { overloaded } from '../../errors.js'
import { publicId } from '../../credentials/id.js'
import type { Clock } from '../../clock.js'
import type { Change, Feed } from './feed.js'
import { inSlices } from './slices.js'

export interface StreamsParts {
  readonly feed: Pick<Feed, 'position' | 'confirmedAt' | 'historyToken' | 'now' | 'isFresh' | 'poll'>
  readonly clock: Clock
  /** Most streams at once. One gateway may have half of them. */
  readonly max: number
  /** How often the feed is confirmed at least while it is well. */
  readonly heartbeatMs: number
}

interface Stream {
  readonly gateway: Gateway
  readonly raw: ServerResponse
  readonly openedAt: number
}

/** Bytes that may wait for a gateway to read when there is more to say. */
const MAX_WAITING = 64 * 1024
/** Streams that are told something at a stretch: some milliseconds. */
const STREAMS_PER_SLICE = 50
/** More keys than this are not listed. */
const MAX_LISTED = 10_000
/** A longer one would not pass as a header when it comes back. */
const MAX_ID_LENGTH = 1024
/** How soon a stream that was lost should be asked for again, for clients that go by it. */
const RETRY_MS = 1000
/** How long the end of a stream may take to reach its gateway. */
const END_MS = 1000

/** A heartbeat, the same for all streams but for one number: how long after each of them was opened that is which is confirmed. */
interface Heartbeat {
  readonly confirmedAt: number
  readonly history: string
  readonly head: string
  readonly tail: string
}

/** What streams are told, by organization; `null` is all of them. */
type Messages = Map<string | null, Buffer | undefined>

export class ChangeStreams {
  readonly #streams = new Set<Stream>()
  /** Gateways that have been admitted and whose streams have not begun yet. */
  readonly #coming = new Set<{ readonly gateway: Gateway }>()
  readonly #timer: NodeJS.Timeout
  #beatAt = -Infinity
  #last: Heartbeat | undefined
  #isConfirming = false
  #isEnded = false

  constructor(private readonly parts: StreamsParts) {
    // Without confirmations there is nothing to be heard from the feed, not even that it is stale.
    this.#timer = setInterval(() => parts.feed.isFresh() || this.closeAll(), parts.heartbeatMs).unref()
  }

  get size(): number {
    return this.#streams.size
  }

  /**
   * Keeps a place for a stream.
   *
   * @returns what gives the place back, once the stream has begun or is not going to
   * @throws Problem `overloaded` when there is no place, or no time left for one
   */
  admit(gateway: Gateway): () => void {
    const { max } = this.parts
    const all = [...this.#streams, ...this.#coming]
    const own = all.filter((one) => one.gateway.id === gateway.id)
    if (this.#isEnded || all.length >= max || own.length >= Math.ceil(max / 2)) throw overloaded()
    const place = { gateway }
    this.#coming.add(place)
    return () => this.#coming.delete(place)
  }

  /**
   * Begins a stream. From this moment on it is told everything.
   *
   * @param missed what changed before this moment that the gateway has not been told; `undefined` is that nobody knows
   */
  open(gateway: Gateway, raw: ServerResponse, headers: Readonly<Record<string, string>>, missed: readonly Change[] | undefined): void {
    if (raw.destroyed || this.#isEnded) return void raw.destroy()
    const stream = { gateway, raw, openedAt: this.parts.clock.now() }
    raw.on('close', () => this.#streams.delete(stream)).on('error', () => {})
    this.#streams.add(stream)
    // While nobody waited for word, the feed may have been silent for longer.
    if (this.#streams.size === 1) this.parts.feed.poll()
    // The connection ends with the stream: one that is idle after it would keep a process from ending.
    raw.writeHead(200, { ...headers, 'content-type': 'text/event-stream; charset=utf-8', 'cache-control': 'no-store', 'x-accel-buffering': 'no', connection: 'close' })
    this.#write(stream, `retry: ${RETRY_MS}\n\n`)
    if (!missed || missed.some(isGone)) this.#write(stream, this.#message('reset', {}))
    else this.#tell(stream, missed, this.parts.feed.position, new Map())
    this.#confirm(stream)
  }

  /**
   * Resolves when all streams have been told, those that begin meanwhile as well.
   *
   * @param position of who has been told these changes
   */
  async changed(changes: readonly Change[], position: string): Promise<void> {
    // Whose it was nobody can say, and everybody else's business it is not.
    if (changes.some(isGone)) return this.closeAll()
    const ids = new Set(changes.map(({ id }) => id))
    const messages: Messages = new Map()
    await inSlices(this.#streams, STREAMS_PER_SLICE, (stream) => {
      // The gateway itself changed, and may have been revoked: let it come back, if it still may.
      if (ids.has(stream.gateway.id)) this.#close(stream)
      else this.#tell(stream, changes, position, messages)
    })
  }

  /** Passes on that everything has been told; not each time, for the feed is polled as often as something changes. */
  confirmed(): void {
    const at = this.parts.clock.now()
    if (this.#isConfirming || at - this.#beatAt < this.parts.heartbeatMs / 2) return
    this.#beatAt = at
    this.#isConfirming = true
    // What is confirmed moves on between slices only when every stream has been told what changed before.
    void inSlices(this.#streams, STREAMS_PER_SLICE, (stream) => this.#confirm(stream)).finally(() => (this.#isConfirming = false))
  }

  /** Gateways come back, are authenticated again, and are told what they missed. From now on these streams are told nothing. */
  closeAll(): void {
    const closing = [...this.#streams]
    this.#streams.clear()
    void inSlices(closing, STREAMS_PER_SLICE, (stream) => this.#close(stream))
  }

  /** From now on there are none. */
  end(): void {
    this.#isEnded = true
    clearInterval(this.#timer)
    this.closeAll()
  }

  /** @param messages those that have been written already, by organization: many gateways are told the same */
  #tell(stream: Stream, changes: readonly Change[], position: string | undefined, messages: Messages): void {
    const { org_id } = stream.gateway
    if (!messages.has(org_id)) messages.set(org_id, this.#messageAbout(changes, position, org_id))
    const message = messages.get(org_id)
    if (message) this.#write(stream, message)
  }

  /** `undefined` when nothing of this organization has changed. */
  #messageAbout(changes: readonly Change[], position: string | undefined, orgId: string | null): Buffer | undefined {
    const own = changes.filter((change) => change.kind === 'mecha' && (orgId === null || change.org_id === orgId))
    if (own.length === 0) return undefined
    const message = own.length > MAX_LISTED ? this.#message('reset', {}, position) : this.#message('changed', { key_ids: own.map(({ id }) => publicId('mecha', id)) }, position)
    // Bytes, and not text: all streams wait with the same ones, and nothing is encoded for each of them.
    return Buffer.from(message)
  }

  #confirm(stream: Stream): void {
    const { feed } = this.parts
    const { expires_at } = stream.gateway
    if (expires_at !== null && feed.now() >= expires_at) return this.#close(stream)
    const { confirmedAt, head, tail } = this.#heartbeat()
    // Down to a whole number: never later than it was.
    this.#write(stream, `${head}${Math.floor(confirmedAt - stream.openedAt)}${tail}`)
  }

  /** Made once for all streams. While it is passed on the feed may be a position further: who goes on from this one is told that twice. */
  #heartbeat(): Heartbeat {
    const { confirmedAt, historyToken: history } = this.parts.feed
    if (this.#last?.confirmedAt === confirmedAt && this.#last.history === history) return this.#last
    const rest = JSON.stringify({ database_time: new Date(this.parts.feed.now(confirmedAt)).toISOString(), history })
    const [head, tail] = [`${this.#begin('confirmed')}{"confirmed_ms":`, `,${rest.slice(1)}\n\n`]
    return (this.#last = { confirmedAt, history, head, tail })
  }

  #message(event: string, data: object, position?: string): string {
    return `${this.#begin(event, position)}${JSON.stringify(data)}\n\n`
  }

  #begin(event: string, position = this.parts.feed.position ?? ''): string {
    const id = position.length > 0 && position.length <= MAX_ID_LENGTH ? `id: ${position}\n` : ''
    return `${id}event: ${event}\ndata: `
  }

  #write(stream: Stream, text: string | Buffer): void {
    const { raw } = stream
    if (raw.writableLength <= MAX_WAITING) return void raw.write(text)
    // One that waits for its turn on a connection would not say that it was destroyed.
    this.#streams.delete(stream)
    raw.destroy()
  }

  #close(stream: Stream): void {
    this.#streams.delete(stream)
    stream.raw.end()
    setTimeout(() => stream.raw.destroy(), END_MS).unref()
  }
}

function isGone({ kind }: Change): boolean {
  return kind === null
}
