/** A listener as this service needs it: it answers a proxy that asks `/v1/authz` with nothing that a proxy cannot take. */

import type { AddressInfo } from 'node:net'
import type { FastifyInstance } from 'fastify'
import type { Logger } from 'pino'
import type { Settings } from '../config.js'
import { asRefusal } from '../runtime/authz/refusals.js'
import { isForAuthz, withoutSubPath } from '../runtime/authz/target.js'
import { createServer, type ServerOptions } from './http-server.js'

export interface ListenerOptions extends Pick<ServerOptions, 'compilers' | 'tracing' | 'headersFor'> {
  readonly logger: Logger
  /** Whether `/v1/authz` is all that is served. */
  readonly isAuthzOnly?: boolean
}

export function createListener(config: Settings, { isAuthzOnly = false, ...given }: ListenerOptions): FastifyInstance {
  return createServer({
    requestTimeoutMs: config.REQUEST_TIMEOUT * 1000,
    closeTimeoutMs: config.SHUTDOWN_TIMEOUT * 1000,
    trustProxy: config.TRUST_PROXY ?? false,
    requireHostHeader: !isAuthzOnly,
    ...given,
    rewriteTarget: withoutSubPath,
    problemFor: (problem, target) => (isAuthzOnly || isForAuthz(target) ? asRefusal(problem, config.AUTHZ_UNAVAILABLE) : problem),
  })
}

/** The URL of this process when no setting names one. With `PORT=0` the port is known only once the server listens. */
export function listeningUrl({ server }: FastifyInstance, { HOST, PORT }: Settings): string {
  const address = server.address() as AddressInfo | null
  return `http://${HOST.includes(':') ? `[${HOST}]` : HOST}:${address?.port ?? PORT}`
}
