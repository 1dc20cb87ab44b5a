/**
 * The gateway SDK for Fastify: `import { mechaAuth } from 'mecha-keys/gateway/fastify'`.
 *
 * Nobody passes to the routes of the scope that it is registered in, and of those below, but Mechas with a good key. A
 * route can ask for more in its `config`: `{ mecha: { scopes: ['orders:read'] } }`.
 */

import type { FastifyInstance, FastifyReply } from 'fastify'
import { authenticate, presentedKey } from './authenticate.js'
import type { Refusal } from './refusals.js'
import type { Demand, Valid } from './verdict.js'
import type { Verifier } from './verifier.js'

declare module 'fastify' {
  interface FastifyRequest {
    /** Who calls, in the scope of `mechaAuth`. */
    mecha: Valid
  }
  interface FastifyContextConfig {
    /** What a route demands of a key, in the place of what `mechaAuth` was registered with; `false` lets anybody pass. */
    mecha?: Demand | false
  }
}

export interface MechaAuthOptions extends Demand {
  readonly verifier: Verifier
}

/** Registers the check for a scope: `await app.register(mechaAuth, { verifier })`. */
export async function mechaAuth(app: FastifyInstance, { verifier, mecha, scopes }: MechaAuthOptions): Promise<void> {
  app.decorateRequest('mecha')
  app.addHook('onRequest', async (request, reply) => {
    const demand = request.routeOptions.config.mecha ?? { mecha, scopes }
    if (demand === false) return
    const outcome = await authenticate(verifier, presentedKey(request.headers), demand)
    if (!('valid' in outcome)) return refuse(reply, outcome)
    request.mecha = outcome
  })
}

// For the scope that it is registered in, and not for one of its own: what `fastify-plugin` does, without it.
Object.assign(mechaAuth, { [Symbol.for('skip-override')]: true, [Symbol.for('fastify.display-name')]: 'mechaAuth' })

function refuse(reply: FastifyReply, { status, headers, body }: Refusal): FastifyReply {
  return reply.code(status).headers(headers).serializer((text: string) => text).send(body)
}
