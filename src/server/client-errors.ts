/** Answers errors that Node.js finds before there is a request, or in the middle of one. The answer is a problem, as everywhere else. */

import { STATUS_CODES } from 'node:http'
import type { Socket } from 'node:net'
import type { ConnectionError } from 'fastify'
import { Problem, type ErrorCode } from '../errors.js'
import { incompleteRequest, responsesUnderWay } from './connections.js'
import { PROBLEM_JSON } from '../http/problems.js'

/** A problem as a client may be told it that asked for a target; the target is empty where none can be read. */
export type ProblemFor = (problem: Problem, target: string) => Problem

/** How long the other end may take to read why it was refused. */
const LINGER_MS = 1000

const refused = new WeakSet<Socket>()

/** Refuses what a client sent, after everything before it has been answered, and ends the connection. */
export function refuseClient(error: ConnectionError, socket: Socket, headerLimit: number, problemFor: ProblemFor): void {
  // After the first error, the rest of what arrives cannot be parsed and raises errors too.
  if (error.code === 'ECONNRESET' || socket.destroyed || refused.has(socket)) return
  refused.add(socket)
  refuseInTurn()

  function refuseInTurn(): void {
    const incomplete = incompleteRequest(socket)
    const owed = responsesUnderWay(socket)
    const own = owed.find(({ req }) => req === incomplete)
    // Neither an answer to an earlier request may be written into, nor one that has begun.
    const ahead = owed.filter((response) => response !== own || response.headersSent).at(-1)
    if (ahead) return void ahead.once('close', refuseInTurn)
    const wasAnswered = incomplete && !own
    endSoon(wasAnswered ? '' : responseTo(error, problemFor, headerLimit, incomplete?.url))
  }

  function endSoon(text: string): void {
    if (!socket.writable) return void socket.destroy()
    socket.end(text)
    setTimeout(() => socket.destroy(), LINGER_MS).unref()
  }
}

function responseTo(error: ConnectionError, problemFor: ProblemFor, headerLimit: number, url?: string): string {
  const refusals: Record<string, [ErrorCode, string]> = {
    ERR_HTTP_REQUEST_TIMEOUT: ['request_timeout', 'The request took too long to arrive.'],
    HPE_HEADER_OVERFLOW: ['headers_too_large', `Headers may have ${headerLimit / 1024} KiB at most.`],
  }
  const problem = problemFor(new Problem(...(refusals[error.code ?? ''] ?? ['invalid_request', 'This is not valid HTTP.'])), url ?? targetIn(error))
  const body = JSON.stringify(problem.toJSON())
  const headers = { 'Content-Type': PROBLEM_JSON, 'Content-Length': Buffer.byteLength(body), 'Connection': 'close', ...problem.extra.headers }
  const lines = Object.entries(headers).map(([name, value]) => `${name}: ${value}\r\n`)
  return `HTTP/1.1 ${problem.status} ${STATUS_CODES[problem.status]}\r\n${lines.join('')}\r\n${body}`
}

/** The target of a request whose beginning arrived with what is wrong. */
function targetIn({ rawPacket }: Partial<ConnectionError>): string {
  // Fastify types `rawPacket` as it would be after JSON, but here it is still a Buffer.
  const text = (rawPacket as Buffer | undefined)?.toString('latin1') ?? ''
  return /^\S+ (\S+)/.exec(text)?.[1] ?? ''
}
