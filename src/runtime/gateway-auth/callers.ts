/** Which gateway calls a route of the runtime plane, and whether it still waits for its answer. */

import type { FastifyInstance, FastifyReply } from 'fastify'
import type { ErrorCode } from '../../errors.js'
import { authenticateGateway, type Gateway, type GatewayVerifier } from './authenticate.js'

declare module 'fastify' {
  interface FastifyRequest {
    gateway: Gateway
  }
  interface FastifyReply {
    /** A signal that aborts when the caller hangs up before it has its answer. Made anew each time it is asked for. */
    readonly signal: AbortSignal
  }
}

/** Whoever waits for an answer. Making the signal costs something, so it is read only where there is something to wait for. */
export interface Caller {
  /** Aborted when nobody waits any more. */
  readonly signal: AbortSignal
}

/** Finds the gateway of a credential. */
export interface GatewayAuthenticator {
  verifyGateway(credential: string, caller: Caller): Gateway | undefined | Promise<Gateway | undefined>
}

/** The problems of every route to which gateways send a body. */
export const GATEWAY_ERRORS = [
  'invalid_request', 'malformed_body', 'unauthenticated', 'body_too_large', 'unsupported_media_type', 'database_unavailable', 'feed_stale', 'database_restored', 'root_secret_missing', 'overloaded',
] satisfies ErrorCode[]

/** Adds `request.gateway` and `reply.signal`; to be called once for a plane. */
export function decorateCallers(app: FastifyInstance): void {
  app.decorateRequest('gateway')
  // Not `request.signal`: that one aborts as soon as the body has been read.
  app.decorateReply('signal', { getter: hangUpSignal })
}

/** Reads a gateway's credential from the `Authorization` header, and throws `unauthenticated` where there is no good one. */
type Authenticate = (authorization: string | undefined, verify: GatewayVerifier) => Gateway | Promise<Gateway>

/** Lets nobody but gateways pass to the routes of a scope. */
export function requireGateway(app: FastifyInstance, verifier: GatewayAuthenticator, authenticate: Authenticate = authenticateGateway): void {
  // Not asynchronous: a gateway that is cached is let in without a promise.
  app.addHook('onRequest', (request, reply, done) => {
    const gateway = authenticate(request.headers.authorization, (credential) => verifier.verifyGateway(credential, reply))
    if (!(gateway instanceof Promise)) {
      request.gateway = gateway
      return done()
    }
    gateway.then(
      (found) => {
        request.gateway = found
        done()
      },
      (error: Error) => done(error),
    )
  })
}

function hangUpSignal(this: FastifyReply): AbortSignal {
  const { raw } = this
  const controller = new AbortController()
  const abort = () => raw.writableFinished || controller.abort()
  // A connection that is closed already emits no `close` again.
  if (raw.destroyed) abort()
  else raw.once('close', abort)
  return controller.signal
}
