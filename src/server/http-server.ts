/** The HTTP server, as each listener has one: what it takes, how long it waits, and what becomes of its connections. */

import { randomBytes } from 'node:crypto'
import type { IncomingMessage } from 'node:http'
import Fastify, { LogController, type FastifyBaseLogger, type FastifyInstance, type FastifyRequest } from 'fastify'
import type { Tracing } from '../tracing/tracing.js'
import { refuseClient, type ProblemFor } from './client-errors.js'
import { admitRequest, endConnectionsOnClose } from './connections.js'
import { logRequests, requestLogger } from './request-log.js'
import { answerProblem, toProblem } from '../http/problems.js'
import type { Compilers } from '../http/validation.js'

export interface ServerOptions {
  readonly logger: FastifyBaseLogger
  /** Longest that a request may take to arrive. */
  readonly requestTimeoutMs: number
  /** Longest that a connection lasts after `close()` was called. */
  readonly closeTimeoutMs: number
  /** Addresses or networks of proxies whose `X-Forwarded-For` is believed. */
  readonly trustProxy: string[] | false
  readonly requireHostHeader: boolean
  /** The target that a request is routed by. */
  readonly rewriteTarget: (target: string) => string
  readonly problemFor: ProblemFor
  readonly compilers: Compilers
  readonly tracing: Tracing | undefined
  /** What is sent along with the refusal of a path that is none. */
  readonly headersFor: (request: FastifyRequest) => Record<string, string>
}

const BODY_LIMIT = 16 * 1024
const HEADER_LIMIT = 16 * 1024
/** No longer than a UUID needs with room to spare, and shorter than any key: none can hide in one. */
const REQUEST_ID = /^[A-Za-z0-9._-]{1,64}$/

export function createServer(options: ServerOptions): FastifyInstance {
  const timeout = options.requestTimeoutMs
  const app = Fastify({
    loggerInstance: options.logger,
    childLoggerFactory: requestLogger,
    logController: new LogController({ disableRequestLogging: true, requestIdLogLabel: 'request_id' }),
    genReqId: requestIds(),
    schemaController: { compilersFactory: options.compilers as never },
    trustProxy: options.trustProxy,
    bodyLimit: BODY_LIMIT,
    requestTimeout: timeout,
    keepAliveTimeout: 65_000,
    // While draining, what still arrives on an open connection is served as ever, and /readyz says that it is over.
    return503OnClosing: false,
    rewriteUrl: ({ url }) => options.rewriteTarget(url!),
    routerOptions: { maxParamLength: 256 },
    // Node.js looks for requests that are overdue every 30 seconds unless it is told otherwise.
    http: { maxHeaderSize: HEADER_LIMIT, headersTimeout: timeout, requestTimeout: timeout, connectionsCheckingInterval: 1000, requireHostHeader: options.requireHostHeader },
    frameworkErrors: (error, request, reply) => {
      if (!admitRequest(request.raw, reply.raw)) return
      void answerProblem(reply.headers({ 'x-request-id': request.id, ...options.headersFor(request) }), toProblem(error))
    },
    clientErrorHandler: (error, socket) => refuseClient(error, socket, HEADER_LIMIT, options.problemFor),
  })
  // An `Expect` that Node.js does not know is no reason to answer 417, which no proxy makes sense of.
  app.server.on('checkExpectation', (request, response) => app.server.emit('request', request, response))
  // Before all other hooks. Callbacks and not promises, here and in all that every request passes: each promise is a turn
  // of the queue.
  app.addHook('onRequest', (request, reply, done) => {
    if (!admitRequest(request.raw, reply.raw)) return
    reply.header('x-request-id', request.id)
    done()
  })
  options.tracing?.traceRequests(app)
  app.decorateReply('refusal')
  logRequests(app)
  endConnectionsOnClose(app, options.closeTimeoutMs)
  return app
}

/** The caller's own id of a request, or the next of a row that no other process has: to draw each one costs more than to use it. */
function requestIds(): (request: Pick<IncomingMessage, 'headers'>) => string {
  const process = randomBytes(9).toString('base64url')
  let count = 0
  return ({ headers }) => {
    const given = headers['x-request-id']
    return typeof given === 'string' && REQUEST_ID.test(given) ? given : `${process}.${++count}`
  }
}
