/** The maintenance job of signing keys, which runs while the control plane is served. */

import { setTimeout as sleep } from 'node:timers/promises'
import type { FastifyBaseLogger } from 'fastify'
import { newId } from '../../credentials/id.js'
import { maintainSigningKeys, type SigningDeps } from './signing-keys.js'

/** Between two runs by default, and after one that failed. */
const PERIOD_MS = 3_600_000
const RETRY_MS = 5000
/** A start does not wait for a database that is away. */
const PATIENCE_MS = 1000
/** Longest wait for a run under way when the service ends. A transaction that it had begun is rolled back. */
const STOP_TIMEOUT_MS = 1000
/** How far the two clocks may drift apart: far less than how long ended signing keys are kept. */
const TOLERANCE_MS = 60_000

export class SigningKeyMaintenance {
  readonly #end = new AbortController()
  /** The database's clock at the end of the first run, and the monotonic clock at that moment. */
  #first: { readonly now: number; readonly at: number } | undefined
  #running: Promise<void> | undefined

  constructor(
    private readonly deps: SigningDeps,
    private readonly log: FastifyBaseLogger,
    private readonly periodMs = PERIOD_MS,
  ) {}

  /** Runs at once, and then periodically. Resolves when the first run is over, or takes long. */
  async start(): Promise<void> {
    const first = this.#run()
    this.#running = this.#goOn(first)
    await Promise.race([first, sleep(PATIENCE_MS, undefined, { ref: false })])
  }

  async stop(): Promise<void> {
    this.#end.abort()
    await Promise.race([this.#running, sleep(STOP_TIMEOUT_MS, undefined, { ref: false })])
  }

  async #goOn(first: Promise<boolean>): Promise<void> {
    let isWell = await first
    for (;;) {
      const aborted = await sleep(isWell ? this.periodMs : RETRY_MS, false, { signal: this.#end.signal, ref: false }).catch(() => true)
      if (aborted) return
      isWell = await this.#run()
    }
  }

  /**
   * The latest that it can be by the time that has passed since the first run. If the database's clock jumps ahead, what was
   * exchanged for a key that has ended is still alive elsewhere: its index in the status list must not become another key's.
   */
  #latest(): number {
    return this.#first ? this.#first.now + (performance.now() - this.#first.at) + TOLERANCE_MS : Infinity
  }

  /** Returns whether it succeeded. */
  async #run(): Promise<boolean> {
    try {
      const author = { actor: 'service', requestId: newId(), address: 'local' }
      const now = await maintainSigningKeys(this.deps, author, { log: this.log, latest: this.#latest() })
      this.#first ??= { now: now.getTime(), at: performance.now() }
      return true
    } catch (error) {
      // The pool is closed while the last run is still under way.
      if (!this.#end.signal.aborted) this.log.warn({ err: error }, 'signing keys could not be maintained; trying again')
      return false
    }
  }
}
