/** The service over HTTP: asked by so many at once and no more, with an end to every wait. */

import { VerifierUnavailable, type Verdict } from './verdict.js'

export interface ServiceOptions {
  readonly url: string
  readonly credential: string
  /** Longest that anything asked here may take, in milliseconds, the wait for its turn included. */
  readonly timeoutMs: number
  /** Most requests under way at once. */
  readonly maxConcurrent: number
  /** Most that wait for their turn. */
  readonly maxWaiting: number
  readonly fetch: typeof fetch
}

/** A verdict, and how old what it rests on was when it was given. */
export interface Answer {
  readonly verdict: Verdict
  /** In milliseconds; `Infinity` where the service does not say. */
  readonly ageMs: number
}

export class Service {
  readonly #base: string
  #running = 0
  readonly #waiting = new Set<() => void>()

  constructor(private readonly options: ServiceOptions) {
    this.#base = options.url.replace(/\/+$/, '')
  }

  /**
   * Asks about a key.
   *
   * @throws VerifierUnavailable when there is no answer that could be trusted
   */
  async verify(key: string): Promise<Answer> {
    const { status, headers, body } = await this.#post('/v1/verify', { key }, { prefer: 'freshness' }, 2)
    if (status !== 200 || !isVerdict(body)) throw refusal(status, body)
    const age = headers.get('x-feed-age')
    return { verdict: body, ageMs: age !== null && /^\d+$/.test(age) ? Number(age) : Infinity }
  }

  /**
   * Notes that a nonce has been used with a key.
   *
   * @returns `false` when it had been used before, with any gateway
   * @throws VerifierUnavailable when the service cannot say
   */
  async useNonce(keyId: string, nonce: string, expiresAt: Date): Promise<boolean> {
    const { status, body } = await this.#post('/v1/nonces', { key_id: keyId, nonce, expires_at: expiresAt.toISOString() }, {}, 1)
    if (status === 201) return true
    if (status === 409 && (body as { code?: unknown } | undefined)?.code === 'nonce_reused') return false
    throw refusal(status, body)
  }

  /**
   * Opens the stream of changes.
   *
   * @throws VerifierUnavailable when it cannot be had
   */
  async follow(lastEventId: string | undefined, signal: AbortSignal): Promise<AsyncIterable<Uint8Array>> {
    const { credential, fetch } = this.options
    const response = await fetch(`${this.#base}/v1/changes`, {
      headers: { authorization: `Bearer ${credential}`, accept: 'text/event-stream', ...(lastEventId !== undefined && { 'last-event-id': lastEventId }) },
      redirect: 'error',
      signal,
    }).catch((error: unknown) => {
      throw unreachable(error)
    })
    if (response.status !== 200) throw refusal(response.status, await response.json().catch(() => undefined))
    if (!response.headers.get('content-type')?.startsWith('text/event-stream') || !response.body) throw refusal(response.status, undefined)
    return response.body
  }

  /** @param attempts more than one for what may be asked twice: a connection that was kept can have been closed meanwhile */
  async #post(path: string, body: object, headers: Record<string, string>, attempts: number) {
    const { credential, timeoutMs, fetch } = this.options
    const sentAt = performance.now()
    const signal = AbortSignal.timeout(timeoutMs)
    await this.#turn(signal)
    try {
      for (let attempt = 1; ; attempt++) {
        try {
          const response = await fetch(this.#base + path, {
            method: 'POST',
            headers: { authorization: `Bearer ${credential}`, 'content-type': 'application/json', ...headers },
            body: JSON.stringify(body),
            redirect: 'error',
            signal,
          })
          const answered: unknown = await response.json().catch((error: unknown) => {
            if (signal.aborted) throw error
          })
          // The clock and not the timer: a process that was stopped meanwhile may find answer and timer at once.
          if (performance.now() - sentAt > timeoutMs) throw new Error('it took too long')
          return { status: response.status, headers: response.headers, body: answered }
        } catch (error) {
          if (attempt >= attempts || signal.aborted) throw unreachable(error)
        }
      }
    } finally {
      this.#running--
      const [next] = this.#waiting
      next?.()
    }
  }

  /** Resolves when fewer than the most are under way. */
  async #turn(signal: AbortSignal): Promise<void> {
    const { maxConcurrent, maxWaiting } = this.options
    if (this.#running >= maxConcurrent) {
      if (this.#waiting.size >= maxWaiting) throw new VerifierUnavailable('overloaded', 'too many keys wait for the service')
      await new Promise<void>((resolve, reject) => {
        const leave = () => {
          this.#waiting.delete(go)
          reject(unreachable(signal.reason))
        }
        const go = () => {
          this.#waiting.delete(go)
          signal.removeEventListener('abort', leave)
          // Taken here and not when the promise is looked at: nobody may come in between.
          this.#running++
          resolve()
        }
        this.#waiting.add(go)
        signal.addEventListener('abort', leave)
      })
    } else this.#running++
  }
}

function isVerdict(body: unknown): body is Verdict {
  const verdict = body as Partial<Record<string, unknown>> | undefined
  if (verdict?.['valid'] === false) return typeof verdict['code'] === 'string'
  const mecha = verdict?.['mecha'] as Partial<Record<string, unknown>> | undefined
  return (
    verdict?.['valid'] === true && typeof verdict['key_id'] === 'string' && typeof mecha?.['handle'] === 'string' &&
    typeof verdict['org_id'] === 'string' && Array.isArray(verdict['scopes']) && isTimeOrNull(verdict['expires_at'])
  )
}

function isTimeOrNull(value: unknown): boolean {
  return value === null || (typeof value === 'string' && !Number.isNaN(Date.parse(value)))
}

function unreachable(cause: unknown): VerifierUnavailable {
  return new VerifierUnavailable('service_unreachable', 'the service does not answer', { cause })
}

function refusal(status: number, body: unknown): VerifierUnavailable {
  if (status === 401) return new VerifierUnavailable('credential_refused', "the service does not take this gateway's credential")
  const code = (body as { code?: unknown } | undefined)?.code
  return new VerifierUnavailable('service_unavailable', `the service answered ${status}${typeof code === 'string' ? ` (${code})` : ''}`)
}
