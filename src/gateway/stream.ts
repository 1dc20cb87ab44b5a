/**
 * The service's stream of changes, as a gateway follows it.
 *
 * The bound is counted from the database's truth and not from the last byte: each confirmation says up to which moment
 * everything has been told, in milliseconds since the service opened the stream, and the service opened it no sooner than
 * this process asked for it. So nothing that a confirmation waits in on its way makes it look younger: no proxy, no
 * buffer of the kernel, and no process that was stopped. The clock is a monotonic one, which goes on meanwhile.
 */

import { setTimeout as sleep } from 'node:timers/promises'
import { createParser, type EventSourceMessage } from 'eventsource-parser'
import { VerifierUnavailable } from './verdict.js'

export interface StreamParts {
  /** Asks for the stream, from what was told last. */
  readonly open: (lastEventId: string | undefined, signal: AbortSignal) => Promise<AsyncIterable<Buffer>>
  /** How long a confirmation holds. */
  readonly maxStalenessMs: number
  /** These keys changed: told at this moment, on the monotonic clock. */
  readonly onChanged: (keyIds: readonly string[], at: number) => void
  /** Anything may have changed up to this moment. */
  readonly onReset: (at: number) => void
  /** The stream was lost, or could not be had. Called once until it is there again. */
  readonly onLost: (error: unknown) => void
}

/** After this long a stream is asked for anew: two clocks drift apart, by a tenth of a second in this time at worst. */
const LIFE_MS = 600_000
/** Between two attempts, at most. */
const MAX_PAUSE_MS = 2000
/** A message of ten thousand keys has less than a tenth of it. */
const MAX_MESSAGE = 4 * 1024 * 1024

export class ChangeStream {
  /** Everything that was committed before this moment has been told. */
  #confirmedAt = -Infinity
  /** The database's clock, less this process's monotonic one. */
  #clockOffset: number | undefined
  #lastEventId: string | undefined
  #isStopped = false
  /** Ends what is waited for at the moment. */
  #interrupt = new AbortController()
  #running: Promise<void> | undefined

  constructor(private readonly parts: StreamParts) {}

  start(): void {
    this.#running = this.#run()
  }

  async stop(): Promise<void> {
    this.#isStopped = true
    this.#interrupt.abort()
    await this.#running
  }

  /** Whether everything that was committed `maxStalenessMs` ago or earlier has been told. */
  isFresh(at = performance.now()): boolean {
    return this.leftMs(at) >= 0
  }

  /** How long that will still hold if nothing more is heard. */
  leftMs(at = performance.now()): number {
    return this.#confirmedAt + this.parts.maxStalenessMs - at
  }

  /** The database's time in milliseconds: at most a round trip fast, and never slow. This machine's where it is not known yet. */
  now(at = performance.now()): number {
    return this.#clockOffset === undefined ? Date.now() : at + this.#clockOffset
  }

  async #run(): Promise<void> {
    for (let failures = 0; !this.#isStopped; ) {
      try {
        await this.#follow(() => (failures = 0))
      } catch (error) {
        if (failures++ === 0 && !this.#isStopped) this.parts.onLost(error)
      }
      await this.#pause(failures)
    }
  }

  /** Follows one stream to its end. */
  async #follow(onConfirmed: () => void): Promise<void> {
    const end = (this.#interrupt = new AbortController())
    let isOld = false
    const old = setTimeout(() => ((isOld = true), end.abort()), LIFE_MS).unref()
    // In half of the bound, so that there is time to have another one before anything is refused.
    const silent = setTimeout(() => end.abort(new VerifierUnavailable('service_unreachable', 'the stream of changes is silent')), this.parts.maxStalenessMs / 2).unref()
    const openedAt = performance.now()
    try {
      const chunks = await this.parts.open(this.#lastEventId, end.signal)
      const decoder = new TextDecoder()
      const parser = createParser({
        maxBufferSize: MAX_MESSAGE,
        onEvent: (message) => {
          if (!this.#take(message, openedAt)) return
          silent.refresh()
          onConfirmed()
        },
        onError: (error) => {
          if (error.type === 'max-buffer-size-exceeded') throw error
        },
      })
      for await (const chunk of chunks) parser.feed(decoder.decode(chunk, { stream: true }))
      throw new VerifierUnavailable('service_unreachable', 'the stream of changes has ended')
    } catch (error) {
      if (!isOld) throw error
    } finally {
      clearTimeout(old)
      clearTimeout(silent)
      end.abort()
    }
  }

  /** @returns whether it confirmed more than was confirmed before */
  #take({ event, data, id }: EventSourceMessage, openedAt: number): boolean {
    const at = performance.now()
    const before = this.#confirmedAt
    try {
      if (event === 'changed') this.parts.onChanged(keyIdsIn(data), at)
      if (event === 'reset') this.parts.onReset(at)
      if (event === 'confirmed') {
        const { confirmed_ms, database_time } = confirmationIn(data)
        const confirmedAt = openedAt + confirmed_ms
        this.#clockOffset = database_time - confirmedAt
        this.#confirmedAt = Math.max(before, Math.min(confirmedAt, at))
      }
    } catch (error) {
      // What was not understood may have been a change.
      this.#lastEventId = undefined
      throw error
    }
    this.#lastEventId = id ?? this.#lastEventId
    return this.#confirmedAt > before
  }

  async #pause(failures: number): Promise<void> {
    if (this.#isStopped) return
    this.#interrupt = new AbortController()
    const longest = Math.min(50 * 2 ** failures, MAX_PAUSE_MS, this.parts.maxStalenessMs / 4)
    // Not all gateways at once, when a replica ends that had them all.
    await sleep(longest * (0.5 + Math.random() / 2), undefined, { signal: this.#interrupt.signal, ref: false }).catch(() => {})
  }
}

function keyIdsIn(data: string): readonly string[] {
  const { key_ids: ids } = JSON.parse(data) as { key_ids: unknown }
  if (!Array.isArray(ids) || !ids.every((id) => typeof id === 'string')) throw notUnderstood()
  return ids
}

function confirmationIn(data: string): { readonly confirmed_ms: number; readonly database_time: number } {
  const { confirmed_ms, database_time } = JSON.parse(data) as { confirmed_ms: unknown; database_time: unknown }
  const time = Date.parse(String(database_time))
  if (typeof confirmed_ms !== 'number' || !Number.isFinite(confirmed_ms) || Number.isNaN(time)) throw notUnderstood()
  return { confirmed_ms, database_time: time }
}

function notUnderstood(): VerifierUnavailable {
  return new VerifierUnavailable('service_unavailable', 'the stream of changes holds what is not understood')
}
