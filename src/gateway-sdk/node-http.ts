/** Requests of runtimes, on a plain `node:http` server: read the key, ask the verifier, let pass or refuse. */

import type { IncomingHttpHeaders, IncomingMessage, ServerResponse } from 'node:http'
import type { Duplex, Readable } from 'node:stream'
import { bearerToken } from '../protocol/bearer.js'
import { moment, passed, whenPassed, type Moment } from './clock.js'
import { bodyTooLarge, refusedKey, unavailable, withoutKey, type Refusal } from './refusals.js'
import { callListener } from './report.js'
import type { SignedVerdict } from './signed.js'
import type { Requirements, RefusalCode } from '../protocol/verdict.js'
import { VerifierUnavailable } from './errors.js'
import type { Valid } from './verdict.js'
import type { Verifier } from './verifier-types.js'
import type { End, EndReason } from './watches.js'

/** Why an open socket has to be closed: the key is no longer good, or nobody can say any more that it is. */
export type CloseReason = RefusalCode | Exclude<EndReason, 'changed'>

export interface UpgradeOptions extends Requirements {
  /**
   * Called once when the key that opened the socket is no longer good: for a last word, such as a close frame. The socket is
   * destroyed a quarter of a second later at the latest, whether or not there is a listener and whatever it does. What it
   * throws goes to the verifier's `onError`.
   */
  readonly onEnd?: (reason: CloseReason) => void
}

/** How long a socket that is to be closed has for what was written to it. */
const LAST_WORD_MS = 250
/** Between two attempts to ask about the key of an open socket while the service does not answer, on average. */
const RETRY_MS = 250

/** The key that a request presents: `X-Mecha-Key`, else `Authorization: Bearer`. */
export function presentedKey(headers: IncomingHttpHeaders): string | undefined {
  const { 'x-mecha-key': own, authorization = '' } = headers
  if (own !== undefined) return String(own) || undefined
  return bearerToken(authorization)
}

/**
 * Authenticates a request of a `node:http` server.
 *
 * @returns the identity, or `undefined` when the request has been refused and answered
 */
export async function authenticateRequest(verifier: Verifier, request: IncomingMessage, response: ServerResponse, requirements: Requirements = {}): Promise<Valid | undefined> {
  const outcome = await authenticate(verifier, presentedKey(request.headers), requirements)
  if ('valid' in outcome) return outcome
  answer(response, outcome)
  return undefined
}

export interface SignedOptions extends Requirements {
  /** Longest body that is read, in bytes. 1 MiB without it. */
  readonly maxBodyBytes?: number
}

/**
 * Authenticates a signed request of a `node:http` server, whose body it reads for that.
 *
 * @returns the identity and the body, or `undefined` when the request has been refused and answered
 */
export async function authenticateSignedRequest(
  verifier: Verifier,
  request: IncomingMessage,
  response: ServerResponse,
  { maxBodyBytes = 1024 * 1024, ...requirements }: SignedOptions = {},
): Promise<{ readonly identity: Valid; readonly body: Buffer } | undefined> {
  const body = await readBody(request, maxBodyBytes)
  const outcome = body ? await authenticateSigned(verifier, request.headers, body, requirements) : bodyTooLarge()
  if (body && 'valid' in outcome) return { identity: outcome, body }
  if (!('valid' in outcome)) answer(response, outcome)
  return undefined
}

/**
 * Authenticates an upgrade, of a WebSocket for instance, in a server's `upgrade` listener. From then on the socket is
 * watched: when the key changes it is asked about again, and when it is no longer good the socket is closed.
 *
 * @returns the identity, or `undefined` when the refusal has been written and the socket ended
 */
export async function authenticateUpgrade(verifier: Verifier, request: IncomingMessage, socket: Duplex, options: UpgradeOptions = {}): Promise<Valid | undefined> {
  const { onEnd, ...requirements } = options
  // A client that hangs up meanwhile is no reason for this process to end.
  socket.on('error', () => socket.destroy())
  const key = presentedKey(request.headers)
  const outcome = await authenticate(verifier, key, requirements)
  if (!('valid' in outcome)) {
    writeRefusal(socket, outcome)
    return undefined
  }
  if (socket.destroyed) return undefined
  const release = keepVouched(verifier, key!, outcome, requirements, (reason) => {
    // First of all: nothing that a listener does may keep the socket open.
    destroySoon(socket)
    if (onEnd) callListener((error) => verifier.report(error), onEnd, reason)
    close(socket)
  })
  socket.once('close', release)
  return outcome
}

/** The identity behind a key, or the refusal to answer with. */
export function authenticate(verifier: Verifier, key: string | undefined, requirements: Requirements): Promise<Valid | Refusal> {
  return identify(key, requirements, (presented) => verifier.verify(presented, requirements))
}

/** The identity behind a signed request, or the refusal to answer with. */
export function authenticateSigned(verifier: Verifier, headers: IncomingHttpHeaders, body: Buffer, requirements: Requirements): Promise<Valid | Refusal> {
  return identify(presentedKey(headers), requirements, () => verifier.verifySigned({ headers, body }, requirements))
}

async function identify(key: string | undefined, requirements: Requirements, ask: (key: string) => SignedVerdict | Promise<SignedVerdict>): Promise<Valid | Refusal> {
  if (key === undefined) return withoutKey()
  try {
    const verdict = await ask(key)
    return verdict.valid ? verdict : refusedKey(verdict.code, requirements)
  } catch (error) {
    if (error instanceof VerifierUnavailable) return unavailable()
    throw error
  }
}

/**
 * Vouches for a key for as long as it is good: asks the service about it whenever it changed, and whenever nothing else has
 * vouched for it for a while. It holds the key itself for that, until it ends; memory of the verifier's own has digests only.
 *
 * @param onEnd called once when the key is no longer good, or nobody can say for as long as the bound. What it throws goes to `onError`
 * @returns what ends it without a call
 */
export function keepVouched(verifier: Verifier, key: string, { key_id: keyId }: Valid, requirements: Requirements, onEnd: (reason: CloseReason) => void): () => void {
  let isOver = false
  let release = verifier.watch(keyId, onWatchEnd)

  function stop(): void {
    isOver = true
    release()
  }

  function finish(reason: CloseReason): void {
    if (isOver) return
    stop()
    callListener((error) => verifier.report(error), onEnd, reason)
  }

  function onWatchEnd({ reason, leftMs }: End): void {
    if (reason === 'expired' || reason === 'closed') return finish(reason)
    if (leftMs <= 0) return finish('stale')
    const since = moment()
    release = whenPassed(since, leftMs, () => finish('stale'))
    void askAgain(since, leftMs)
  }

  async function askAgain(since: Moment, leftMs: number): Promise<void> {
    while (!isOver) {
      const outcome = await outcomeOf()
      if (isOver) return
      // The clocks and not the timer, which may be behind them in a process that was stopped.
      if (passed(since, moment()) > leftMs) return finish('stale')
      if (outcome === 'valid') {
        release()
        release = verifier.watch(keyId, onWatchEnd)
        return
      }
      if (outcome !== 'nobody knows') return finish(outcome)
      await new Promise((resolve) => setTimeout(resolve, RETRY_MS * (0.5 + Math.random())))
    }
  }

  async function outcomeOf(): Promise<CloseReason | 'valid' | 'nobody knows'> {
    try {
      const verdict = await verifier.ask(key, requirements)
      return verdict.valid ? 'valid' : verdict.code
    } catch (error) {
      if (!(error instanceof VerifierUnavailable)) return 'stale'
      return error.code === 'closed' ? 'closed' : 'nobody knows'
    }
  }

  return stop
}

/** All of a body, or `undefined` when it is longer than it may be; the rest of it is not kept. */
export async function readBody(stream: Readable, maxBytes: number): Promise<Buffer | undefined> {
  const chunks: Buffer[] = []
  let length = 0
  // Not destroyed: the connection has to carry the refusal.
  for await (const chunk of stream.iterator({ destroyOnReturn: false }) as AsyncIterable<Buffer>) {
    length += chunk.length
    if (length > maxBytes) return undefined
    chunks.push(chunk)
  }
  return Buffer.concat(chunks)
}

function answer(response: ServerResponse, { status, headers, body }: Refusal): void {
  response.writeHead(status, headers).end(body)
}

function writeRefusal(socket: Duplex, { status, headers, body }: Refusal): void {
  const lines = Object.entries({ ...headers, 'content-length': String(Buffer.byteLength(body)), connection: 'close' }).map(([name, value]) => `${name}: ${value}`)
  const { title } = JSON.parse(body) as { title: string }
  socket.end(`HTTP/1.1 ${status} ${title}\r\n${lines.join('\r\n')}\r\n\r\n${body}`)
  close(socket)
}

/** Lets what was written leave, and no more come in than fits into the time that this takes. */
function close(socket: Duplex): void {
  destroySoon(socket)
  socket.once('finish', () => socket.destroy())
  socket.end()
}

function destroySoon(socket: Duplex): void {
  setTimeout(() => socket.destroy(), LAST_WORD_MS).unref()
}
