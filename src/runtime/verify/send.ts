/**
 * Answers that are ready go out together, at the end of the turn of the event loop in which they were made. A write to a
 * socket wakes whoever waits at its other end; written one by one, between requests that take microseconds, each of
 * them has to wake a peer that has just gone back to sleep, and that took most of a verify's time (`docs/performance.md`).
 * A turn is as long as the requests are that arrived together: with one of them there is nothing to wait for.
 */

import type { ServerResponse } from 'node:http'
import type { FastifyReply } from 'fastify'
import type { Problem } from '../../errors.js'
import { PROBLEM_JSON } from '../../http/problems.js'

/** Names and values of headers in turn, as `writeHead` takes them: from an object, it makes them in three times the time. */
export type Headers = readonly string[]

interface Answer {
  readonly raw: ServerResponse
  readonly status: number
  readonly headers: Headers
  readonly text: string
  readonly requestId: string
}

/** Sends ASCII, or nothing, with these headers and those that every answer has. The status is 200 unless it is said. */
export type Send = (reply: FastifyReply, headers: Headers, text: string, status?: number) => void

/** A sender for one app. */
export function createSender(): Send {
  let ready: Answer[] = []

  function writeReady(): void {
    const answers = ready
    ready = []
    for (const answer of answers) {
      try {
        write(answer)
      } catch (error) {
        // It takes none of the others with it.
        answer.raw.destroy(error as Error)
      }
    }
  }

  return (reply, headers, text, status = 200) => {
    const { raw, request } = reply.hijack()
    if (ready.push({ raw, status, headers, text, requestId: request.id }) === 1) setImmediate(writeReady)
  }
}

/** Sends a problem in the same way, for what is refused by the thousand: Fastify's path of errors costs as much as the rest of such a request. */
export function sendProblem(send: Send, reply: FastifyReply, problem: Problem): void {
  reply.refusal = problem
  const headers = Object.entries(problem.extra.headers ?? {}).flat()
  send(reply, [...headers, 'content-type', PROBLEM_JSON], JSON.stringify(problem), problem.status)
}

/**
 * In one write to the socket. `reply.send` makes two of it, of which the second is empty, and each header is looked at
 * once more: 3 of the 30 microseconds of a verify.
 */
function write({ raw, status, headers, text, requestId }: Answer): void {
  raw.writeHead(status, [...headers, 'content-length', String(text.length), 'cache-control', 'no-store', 'x-request-id', requestId])
  if (text !== '') {
    raw.write(text, 'latin1')
    raw.socket?.uncork()
  }
  raw.end()
}
