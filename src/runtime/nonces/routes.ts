/** Nonces of signed requests: the first gateway that names one is told so, and every other that it is too late. */

import { hash } from 'node:crypto'
import type { FastifyPluginAsyncTypebox } from '@fastify/type-provider-typebox'
import type { Kysely } from 'kysely'
import type { Database } from '../../db/tables.js'
import { invalid, notFound, Problem } from '../../errors.js'
import { parseTimestamp } from '../../protocol/signature.js'
import { boundRequests } from '../../http/concurrency-limit.js'
import { answer, responses } from '../../http/schemas.js'
import { parsePublicId } from '../../credentials/id.js'
import { GATEWAY_ERRORS, requireGateway, type GatewayAuthenticator } from '../gateway-auth/callers.js'
import type { OfOneHistory } from '../changes/one-history.js'
import { MAX_NONCE_TTL, MIN_NONCE_TTL, NonceBody, NonceTaken } from './schemas.js'
import { takeNonce } from './store.js'

export interface NonceDeps {
  readonly db: Kysely<Database>
  readonly verifier: GatewayAuthenticator
  readonly ofOneHistory: OfOneHistory
  /** Most requests at once. */
  readonly queueSize: number
}

export function nonceRoutes({ db, verifier, ofOneHistory, queueSize }: NonceDeps): FastifyPluginAsyncTypebox {
  return async (app) => {
    boundRequests(app, queueSize)
    requireGateway(app, verifier)
    app.post(
      '/v1/nonces',
      {
        schema: {
          tags: ['runtime'],
          operationId: 'takeNonce',
          summary: 'Take the nonce of a signed request, which nobody can take again before it expires',
          security: [{ gateway: [] }],
          body: NonceBody,
          response: responses(
            { 201: answer('The nonce was taken by this call', NonceTaken) },
            ...GATEWAY_ERRORS, 'not_found', 'nonce_reused',
          ),
        },
      },
      async ({ body, gateway }, reply) => {
        const time = parseTimestamp(body.expires_at)
        if (time === undefined) throw invalid('body.expires_at', 'format', 'must be a time of RFC 3339')
        const nonce = {
          keyId: parsePublicId('mecha', body.key_id)!,
          orgId: gateway.org_id,
          digest: hash('sha256', body.nonce, 'buffer'),
          expiresAt: new Date(time),
          minTtl: MIN_NONCE_TTL,
          maxTtl: MAX_NONCE_TTL,
        }
        let takenIn: string | undefined
        const { outcome } = await ofOneHistory(async () => {
          const answer = await takeNonce(db, nonce)
          // Asked a second time because the feed follows another history by now: this very call took the nonce the first time.
          if (answer.outcome === 'taken_before' && answer.history === takenIn) return { ...answer, outcome: 'taken' as const }
          if (answer.outcome === 'taken') takenIn = answer.history
          return answer
        })
        if (outcome === 'no_key') throw notFound()
        if (outcome === 'untimely') throw invalid('body.expires_at', 'range', `must be later than now, and ${MAX_NONCE_TTL} seconds from now at most`)
        if (outcome === 'taken_before') throw new Problem('nonce_reused', 'The request that carries it was sent before, or another one with the same nonce.')
        return reply.code(201).header('cache-control', 'no-store').send({})
      },
    )
  }
}
