/** Requests of runtimes, on a plain `node:http` server: read the key, ask the verifier, let pass or refuse. */

import type { IncomingHttpHeaders, IncomingMessage, ServerResponse } from 'node:http'
import type { Duplex, Readable } from 'node:stream'
import { bodyTooLarge, refusedKey, unavailable, withoutKey, type Refusal } from './refusals.js'
import type { SignedVerdict } from './signed.js'
import { VerifierUnavailable, type Demand, type RefusalCode, type Valid } from './verdict.js'
import type { Verifier } from './verifier.js'
import type { End, EndReason } from './watches.js'

/** Why an open socket has to be closed: the key is no longer good, or nobody can say any more that it is. */
export type CloseReason = RefusalCode | Exclude<EndReason, 'changed'>

export interface UpgradeOptions extends Demand {
  /**
   * Called once when the key that opened the socket is no longer good: for a last word, such as a close frame. The socket is
   * destroyed a quarter of a second later at the latest, whether or not there is a listener.
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
  return /^Bearer +(\S+)$/i.exec(authorization)?.[1]
}

/**
 * Authenticates a request of a `node:http` server.
 *
 * @returns the identity, or `undefined` when the request has been refused and answered
 */
export async function authenticateRequest(verifier: Verifier, request: IncomingMessage, response: ServerResponse, demand: Demand = {}): Promise<Valid | undefined> {
  const outcome = await authenticate(verifier, presentedKey(request.headers), demand)
  if ('valid' in outcome) return outcome
  answer(response, outcome)
  return undefined
}

export interface SignedOptions extends Demand {
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
  { maxBodyBytes = 1024 * 1024, ...demand }: SignedOptions = {},
): Promise<{ readonly identity: Valid; readonly body: Buffer } | undefined> {
  const body = await readBody(request, maxBodyBytes)
  const outcome = body ? await authenticateSigned(verifier, request.headers, body, demand) : bodyTooLarge()
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
  const { onEnd, ...demand } = options
  // A client that hangs up meanwhile is no reason for this process to end.
  socket.on('error', () => socket.destroy())
  const key = presentedKey(request.headers)
  const outcome = await authenticate(verifier, key, demand)
  if (!('valid' in outcome)) {
    writeRefusal(socket, outcome)
    return undefined
  }
  if (socket.destroyed) return undefined
  const release = keepVouched(verifier, key!, outcome, demand, (reason) => {
    onEnd?.(reason)
    close(socket)
  })
  socket.once('close', release)
  return outcome
}

/** The identity behind a key, or the refusal to answer with. */
export function authenticate(verifier: Verifier, key: string | undefined, demand: Demand): Promise<Valid | Refusal> {
  return identify(key, demand, (presented) => verifier.verify(presented, demand))
}

/** The identity behind a signed request, or the refusal to answer with. */
export function authenticateSigned(verifier: Verifier, headers: IncomingHttpHeaders, body: Buffer, demand: Demand): Promise<Valid | Refusal> {
  return identify(presentedKey(headers), demand, () => verifier.verifySigned({ headers, body }, demand))
}

async function identify(key: string | undefined, demand: Demand, ask: (key: string) => SignedVerdict | Promise<SignedVerdict>): Promise<Valid | Refusal> {
  if (key === undefined) return withoutKey()
  try {
    const verdict = await ask(key)
    return verdict.valid ? verdict : refusedKey(verdict.code, demand)
  } catch (error) {
    if (error instanceof VerifierUnavailable) return unavailable()
    throw error
  }
}

/**
 * Vouches for a key for as long as it is good: asks about it again whenever it changed, and within the bound. It holds the
 * key itself for that, as long as it is asked to; memory of the verifier's own has digests only.
 *
 * @returns what ends it without a call
 */
export function keepVouched(verifier: Verifier, key: string, { key_id: keyId }: Valid, demand: Demand, onEnd: (reason: CloseReason) => void): () => void {
  let isOver = false
  let release = verifier.watch(keyId, onWatchEnd)

  function finish(reason: CloseReason): void {
    if (isOver) return
    isOver = true
    release()
    onEnd(reason)
  }

  function onWatchEnd({ reason, leftMs }: End): void {
    if (reason !== 'changed') return finish(reason)
    const late = setTimeout(() => finish('stale'), leftMs)
    release = () => clearTimeout(late)
    void askAgain(performance.now() + leftMs)
  }

  async function askAgain(end: number): Promise<void> {
    while (!isOver) {
      try {
        const verdict = await verifier.verify(key, demand)
        if (isOver) return
        // The clock and not the timer, which may be behind it in a process that was stopped.
        if (performance.now() > end) return finish('stale')
        if (!verdict.valid) return finish(verdict.code)
        release()
        release = verifier.watch(keyId, onWatchEnd)
        return
      } catch (error) {
        if (!(error instanceof VerifierUnavailable)) return finish('stale')
        if (error.code === 'closed') return finish('closed')
        await new Promise((resolve) => setTimeout(resolve, RETRY_MS * (0.5 + Math.random())))
      }
    }
  }

  return () => {
    isOver = true
    release()
  }
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
  socket.once('finish', () => socket.destroy())
  socket.end()
  setTimeout(() => socket.destroy(), LAST_WORD_MS).unref()
}
