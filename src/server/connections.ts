/** Connections: how much is under way on one, that each of its responses closes, and that all of them end with the server. */

import type { IncomingMessage, ServerResponse } from 'node:http'
import type { Socket } from 'node:net'
import type { FastifyInstance } from 'fastify'

/**
 * Most requests of one connection that wait for the answer to an earlier one. Hardly any client sends ahead, and each
 * request that waits keeps its answer in memory.
 */
const MAX_PIPELINED = 16

/** What Node.js keeps on a socket, and its types do not name. */
interface HttpSocket extends Socket {
  /** The response whose turn it is. */
  readonly _httpMessage?: ServerResponse | null
  readonly parser?: { readonly incoming?: IncomingMessage | null } | null
}

/** Responses of pipelined requests that are not finished, in their order. */
const pipelines = new WeakMap<Socket, Set<ServerResponse>>()

/**
 * Must be called for each request before anything is done for it. A request beyond the bound ends its connection. To stop
 * reading would not bound anything: Node.js parses all that arrived in one segment, which can be thousands of requests.
 *
 * @returns false when nobody is left to be answered
 */
export function admitRequest({ socket }: IncomingMessage, response: ServerResponse): boolean {
  if (socket.destroyed) return false
  // A request that was not pipelined has the socket already, and needs no bookkeeping.
  if (response.socket !== null) return true
  const pipeline = pipelines.get(socket) ?? createPipeline(socket)
  if (pipeline.size >= MAX_PIPELINED) {
    socket.destroy()
    return false
  }
  pipeline.add(response)
  response.once('close', () => pipeline.delete(response))
  return true
}

/** The responses that a connection owes, in the order in which they go out. */
export function responsesUnderWay(socket: Socket): ServerResponse[] {
  const { _httpMessage: current } = socket as HttpSocket
  return [...new Set([...(current ? [current] : []), ...(pipelines.get(socket) ?? [])])]
}

/** The request of which a connection has the headers and not yet the whole body. */
export function incompleteRequest(socket: Socket): IncomingMessage | undefined {
  const incoming = (socket as HttpSocket).parser?.incoming
  return incoming && !incoming.complete ? incoming : undefined
}

/**
 * Ends every connection when the server closes: one that nothing was ever asked on at once, which Node.js would not count
 * as idle, and whatever is left when the time is over, half a request included.
 */
export function endConnectionsOnClose(app: FastifyInstance, withinMs: number): void {
  const open = new Set<Socket>()
  app.server.on('connection', (socket: Socket) => {
    open.add(socket)
    socket.once('close', () => open.delete(socket))
  })
  let timer: NodeJS.Timeout | undefined
  app.addHook('preClose', (done) => {
    for (const socket of open) if (socket.bytesRead === 0) socket.destroy()
    timer = setTimeout(() => open.forEach((socket) => socket.destroy()), withinMs)
    done()
  })
  app.addHook('onClose', async () => clearTimeout(timer))
}

/**
 * Node.js 20 and 22 emit `close` for the response whose turn it is when a connection is lost, and never for those behind
 * it. Whoever counts or waits until a response closes would do so for ever.
 */
function createPipeline(socket: Socket): Set<ServerResponse> {
  const pipeline = new Set<ServerResponse>()
  pipelines.set(socket, pipeline)
  socket.once('close', () => {
    for (const response of pipeline) if (response.socket === null) close(response)
  })
  return pipeline
}

/** As Node.js closes the response whose turn it is. */
function close(response: ServerResponse): void {
  response.destroyed = true
  ;(response as { _closed?: boolean })._closed = true
  response.emit('close')
}
