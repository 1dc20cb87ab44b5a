/**
 * Answers that are ready go out together, at the end of the turn of the event loop in which they were made. A write to a
 * socket wakes whoever waits at its other end; written one by one, between requests that take microseconds, each of
 * them has to wake a peer that has just gone back to sleep, and that took most of a verify's time (`docs/performance.md`).
 * A turn is as long as the requests are that arrived together: with one of them there is nothing to wait for.
 */

import type { ServerResponse } from 'node:http'
import type { FastifyReply } from 'fastify'

interface Answer {
  readonly raw: ServerResponse
  readonly text: string
  readonly requestId: string
  readonly headers: Headers
}

type Headers = Readonly<Record<string, string>> | undefined

/** Sends JSON in ASCII with status 200, and no header but its own and these. */
export type SendText = (reply: FastifyReply, text: string, headers?: Headers) => void

/** A sender for one app. */
export function createSender(): SendText {
  let ready: Answer[] = []

  function writeReady(): void {
    const answers = ready
    ready = []
    for (const answer of answers) write(answer)
  }

  return (reply, text, headers) => {
    const { raw, request } = reply.hijack()
    if (ready.push({ raw, text, requestId: request.id, headers }) === 1) setImmediate(writeReady)
  }
}

/**
 * In one write to the socket. `reply.send` makes two of it, of which the second is empty, and each header is looked at
 * once more: 3 of the 30 microseconds of a verify.
 */
function write({ raw, text, requestId, headers }: Answer): void {
  raw.writeHead(200, {
    'content-type': 'application/json; charset=utf-8',
    'content-length': text.length,
    'cache-control': 'no-store',
    'x-request-id': requestId,
    ...headers,
  })
  raw.write(text, 'latin1')
  raw.socket?.uncork()
  raw.end()
}
