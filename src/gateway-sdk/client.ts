/** The service over HTTP. So many requests run at once and no more, and every wait has an end. */

import { Agent as HttpAgent, request as requestHttp, type ClientRequest, type IncomingHttpHeaders, type IncomingMessage } from 'node:http'
import { Agent as HttpsAgent, request as requestHttps } from 'node:https'
import { codeOf, headerOf, isVerdict, readJson, refusal, unreachable } from './answers.js'
import { moment, passed } from './clock.js'
import { ConcurrencyLimit } from './concurrency-limit.js'
import { VerifierUnavailable } from './errors.js'
import type { Verdict } from './verdict.js'

export interface ServiceOptions {
  readonly url: string
  readonly credential: string
  /** Longest that anything asked here may take, in milliseconds, the wait for a free place included. */
  readonly timeoutMs: number
  /** Most requests under way at once. */
  readonly maxConcurrent: number
  /** Most requests that wait for one of them to end. */
  readonly maxWaiting: number
  readonly agent?: HttpAgent
}

/** A verdict, and what it rests on. */
export interface Answer {
  readonly verdict: Verdict
  /** How old that was when the answer was given, in milliseconds; `Infinity` where the service does not say. */
  readonly ageMs: number
  /** The history of the database that it was read from; `undefined` where the service does not say. */
  readonly history: string | undefined
  /** What tells the key's row as it was read from what becomes of it; `undefined` where the service does not say. */
  readonly version: string | undefined
}

/** A key as it was read. */
export interface Version {
  readonly key_id: string
  readonly version: string
}

/** When a key was used last. */
export interface UseOfKey {
  readonly key_id: string
  /** RFC 3339. */
  readonly used_at: string
}

interface Response {
  readonly status: number
  readonly headers: IncomingHttpHeaders
  /** JSON that was parsed; `undefined` where it is none. */
  readonly body: unknown
}

export class Service {
  readonly #base: string
  readonly #agent: HttpAgent
  readonly #limit: ConcurrencyLimit

  constructor(private readonly options: ServiceOptions) {
    this.#base = options.url.replace(/\/+$/, '')
    this.#agent = options.agent ?? (this.#base.startsWith('https:') ? new HttpsAgent({ keepAlive: true }) : new HttpAgent({ keepAlive: true }))
    this.#limit = new ConcurrencyLimit(options.maxConcurrent)
  }

  /** Requests under way. */
  get running(): number {
    return this.#limit.running
  }

  /** Requests that wait until they may be sent. */
  get waiting(): number {
    return this.#limit.waiting
  }

  /**
   * Asks about a key.
   *
   * @throws VerifierUnavailable when there is no answer that could be trusted
   */
  async verify(key: string): Promise<Answer> {
    const { status, headers, body } = await this.#post('/v1/verify', { key }, { prefer: 'freshness' }, 2)
    if (status !== 200 || !isVerdict(body)) throw refusal(status, body)
    const age = String(headers['x-feed-age'])
    return { verdict: body, ageMs: /^\d+$/.test(age) ? Number(age) : Infinity, history: headerOf(headers, 'x-feed-history'), version: headerOf(headers, 'x-key-version') }
  }

  /**
   * Asks which keys the database no longer has as they were read.
   *
   * @returns their ids, and the history of that database
   * @throws VerifierUnavailable when the service cannot say
   */
  async revalidate(keys: readonly Version[]): Promise<{ readonly changed: readonly string[]; readonly history: string | undefined }> {
    const { status, headers, body } = await this.#post('/v1/revalidate', { keys }, {}, 2)
    const changed = (body as { changed?: unknown } | null | undefined)?.changed
    if (status !== 200 || !Array.isArray(changed) || !changed.every((id) => typeof id === 'string')) throw refusal(status, body)
    return { changed, history: headerOf(headers, 'x-feed-history') }
  }

  /**
   * Reports uses of keys.
   *
   * @returns `false` when they will never be taken as they are
   * @throws VerifierUnavailable when they may be taken later
   */
  async reportUses(uses: readonly UseOfKey[]): Promise<boolean> {
    const { status, body } = await this.#post('/v1/usage', { uses }, {}, 2)
    if (status === 202) return true
    if (status === 400 || status === 413) return false
    throw refusal(status, body)
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
    if (status === 409 && codeOf(body) === 'nonce_reused') return false
    throw refusal(status, body)
  }

  /**
   * Opens the stream of changes.
   *
   * @param signal ends it, and what is waited for
   * @throws VerifierUnavailable when it cannot be had
   */
  async follow(lastEventId: string | undefined, signal: AbortSignal): Promise<AsyncIterable<Buffer>> {
    const headers = { accept: 'text/event-stream', ...(lastEventId !== undefined && { 'last-event-id': lastEventId }) }
    const response = await this.#send('GET', '/v1/changes', headers, undefined, signal)
    if (response.statusCode !== 200) throw refusal(response.statusCode!, await readJson(response))
    if (response.headers['content-type']?.startsWith('text/event-stream')) {
      forgetHead(response)
      return response
    }
    response.destroy()
    throw refusal(200, undefined)
  }

  /** Ends what is under way, and connections that are kept. */
  close(): void {
    if (!this.options.agent) this.#agent.destroy()
  }

  /** @param attempts more than one for what may be asked twice: a connection that was kept can have been closed meanwhile */
  async #post(path: string, body: object, headers: Record<string, string>, attempts: number): Promise<Response> {
    const { timeoutMs, maxWaiting } = this.options
    if (this.#limit.isFull && this.#limit.waiting >= maxWaiting) throw new VerifierUnavailable('overloaded', 'too many keys wait for the service')
    const sentAt = moment()
    const end = new AbortController()
    const timer = setTimeout(() => {
      end.abort(new Error('it took too long'))
      this.#dropIdle()
    }, timeoutMs)
    await this.#limit.acquire(end.signal).catch((error: unknown) => {
      clearTimeout(timer)
      throw unreachable(error)
    })
    try {
      for (let attempt = 1; ; attempt++) {
        try {
          const response = await this.#send('POST', path, { 'content-type': 'application/json', ...headers }, JSON.stringify(body), end.signal)
          const answered = await readJson(response)
          // The clocks and not the timer: a process that was stopped meanwhile may find answer and timer at once, and a timer stands still with a suspended machine.
          if (passed(sentAt, moment()) > timeoutMs) throw new Error('it took too long')
          return { status: response.statusCode!, headers: response.headers, body: answered }
        } catch (error) {
          if (attempt >= attempts || end.signal.aborted) throw unreachable(error)
        }
      }
    } finally {
      clearTimeout(timer)
      this.#limit.release()
    }
  }

  /** Sends a request, and resolves to its response when that begins. Not `fetch`, whose signal can be collected as garbage. */
  #send(method: string, path: string, headers: Record<string, string>, body: string | undefined, signal: AbortSignal): Promise<IncomingMessage> {
    const send = this.#base.startsWith('https:') ? requestHttps : requestHttp
    return new Promise((resolve, reject) => {
      const fail = (error: unknown) => reject(unreachable(error))
      if (signal.aborted) return fail(signal.reason)
      const request = send(this.#base + path, { method, agent: this.#agent, headers: { ...headers, ...(body !== undefined && { 'content-length': Buffer.byteLength(body) }) } })
      // Not among the options, which a connection keeps for as long as it lives.
      request.setHeader('authorization', `Bearer ${this.options.credential}`)
      const abort = () => request.destroy(signal.reason as Error)
      signal.addEventListener('abort', abort)
      request.on('error', fail).on('response', resolve).on('close', () => signal.removeEventListener('abort', abort))
      request.end(body)
    })
  }

  /** Connections that wait to be used again: where one of them has died without a word, the others may have too. */
  #dropIdle(): void {
    if (!this.options.agent) for (const socket of Object.values(this.#agent.freeSockets).flat()) socket?.destroy()
  }
}

/**
 * Lets go of the head of the request that a response answers, which has the credential in it. Node.js keeps it as long as the
 * response lasts, and a stream lasts for hours.
 */
function forgetHead(response: IncomingMessage): void {
  const { req } = response as IncomingMessage & { req: ClientRequest & { _header: string | null } }
  req._header = null
  req.removeHeader('authorization')
}
