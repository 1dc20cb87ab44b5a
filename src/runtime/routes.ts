/** The runtime plane: gateways ask whether a key is good. */

import type { FastifyPluginAsyncTypebox } from '@fastify/type-provider-typebox'
import { authenticateGateway, type Gateway } from '../auth/gateways.js'
import { answer, responses } from '../http/schemas.js'
import { parseHandle } from '../key/handle.js'
import { publicId } from '../key/id.js'
import { VerifyAnswer, VerifyBody } from './schemas.js'
import type { Verifier } from './verifier.js'

declare module 'fastify' {
  interface FastifyRequest {
    gateway: Gateway
  }
}

export function runtimePlane(verifier: Verifier): FastifyPluginAsyncTypebox {
  return async (app) => {
    app.decorateRequest('gateway')
    app.addHook('onRequest', async (request, reply) => {
      reply.header('cache-control', 'no-store')
      request.gateway = await authenticateGateway(request.headers.authorization, verifier.verifyGateway)
    })

    app.post(
      '/v1/verify',
      {
        schema: {
          tags: ['runtime'],
          operationId: 'verifyKey',
          summary: 'Is this key good, for this Mecha and these scopes?',
          security: [{ gateway: [] }],
          body: VerifyBody,
          response: responses(
            { 200: answer('The verdict, valid or not', VerifyAnswer) },
            'invalid_request', 'malformed_body', 'unauthenticated', 'body_too_large', 'unsupported_media_type', 'database_unavailable', 'root_secret_missing',
          ),
        },
      },
      async ({ body: { key, ...demand }, gateway }) => {
        const verdict = await verifier.verifyKey(key, gateway, demand)
        if ('code' in verdict) return { valid: false as const, code: verdict.code }
        const { id, mecha, org_id, scopes, metadata, expires_at } = verdict.key
        return {
          valid: true as const,
          key_id: publicId('mecha', id),
          mecha: parseHandle(mecha!),
          org_id: org_id!,
          scopes,
          metadata,
          expires_at: expires_at && expires_at.toISOString(),
        }
      },
    )
  }
}
