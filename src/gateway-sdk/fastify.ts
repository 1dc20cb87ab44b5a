/**
 * The gateway SDK for Fastify: `import { mechaAuth } from 'mecha-keys/gateway/fastify'`.
 *
 * Nobody passes to the routes of the scope that it is registered in, and of those below, but Mechas with a good key. A
 * route can ask for more in its `config`: `{ mecha: { scopes: ['orders:read'] } }`.
 */

import { Readable } from 'node:stream'
import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify'
import { authenticate, authenticateSigned, presentedKey, readBody } from './node-http.js'
import { bodyTooLarge, type Refusal } from './refusals.js'
import type { Requirements } from '../protocol/verdict.js'
import type { Valid } from './verdict.js'
import type { Verifier } from './verifier-types.js'

declare module 'fastify' {
  interface FastifyRequest {
    /** Who calls, in the scope of `mechaAuth`. */
    mecha: Valid
  }
  interface FastifyContextConfig {
    /** What a route demands of a key, in the place of what `mechaAuth` was registered with; `false` lets anybody pass. */
    mecha?: Requirements | false
  }
}

export interface MechaAuthOptions extends Requirements {
  readonly verifier: Verifier
  /** Whether requests have to be signed. Their bodies are read as a whole, up to the route's `bodyLimit`. */
  readonly signed?: boolean
}

/** Registers the check for a scope: `await app.register(mechaAuth, { verifier })`. */
export async function mechaAuth(app: FastifyInstance, { verifier, signed = false, mecha, scopes }: MechaAuthOptions): Promise<void> {
  const requirementsOf = (request: FastifyRequest) => request.routeOptions.config.mecha ?? { mecha, scopes }
  app.decorateRequest('mecha')
  if (!signed)
    app.addHook('onRequest', async (request, reply) => {
      const requirements = requirementsOf(request)
      if (requirements === false) return
      const outcome = await authenticate(verifier, presentedKey(request.headers), requirements)
      if (!('valid' in outcome)) return refuse(reply, outcome)
      request.mecha = outcome
    })
  else
    app.addHook('preParsing', async (request, reply, payload) => {
      const requirements = requirementsOf(request)
      if (requirements === false) return payload
      const body = await readBody(payload, request.routeOptions.bodyLimit)
      const outcome = body ? await authenticateSigned(verifier, request.headers, body, requirements) : bodyTooLarge()
      if (!body || !('valid' in outcome)) return refuse(reply, outcome as Refusal)
      request.mecha = outcome
      return Readable.from([body], { objectMode: false })
    })
}

// For the scope that it is registered in, and not for one of its own: what `fastify-plugin` does, without it.
Object.assign(mechaAuth, { [Symbol.for('skip-override')]: true, [Symbol.for('fastify.display-name')]: 'mechaAuth' })

function refuse(reply: FastifyReply, { status, headers, body }: Refusal): FastifyReply {
  return reply.code(status).headers(headers).serializer((text: string) => text).send(body)
}
