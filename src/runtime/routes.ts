/** The runtime plane: gateways ask whether a key is good. */

import type { FastifyPluginAsyncTypebox } from '@fastify/type-provider-typebox'
import type { FastifyReply } from 'fastify'
import type { Settings } from '../config.js'
import { answer, responses } from '../http/schemas.js'
import { answerOf } from './answer.js'
import { authzRoutes } from './authz.js'
import { decorateCallers, requireGateway } from './callers.js'
import { VerifyAnswer, VerifyBody } from './schemas.js'
import type { Verifier } from './verifier.js'

export interface RuntimeParts {
  readonly verifier: Verifier
  readonly config: Settings
}

export function runtimePlane({ verifier, config }: RuntimeParts): FastifyPluginAsyncTypebox {
  return async (app) => {
    decorateCallers(app)
    // The schema of a body that comes here takes no field that is not in it, `__proto__` included: nothing is left to look for.
    app.removeContentTypeParser('application/json')
    app.addContentTypeParser('application/json', { parseAs: 'string' }, app.getDefaultJsonParser('ignore', 'ignore'))
    await app.register(verifyRoutes(verifier))
    await app.register(authzRoutes({ verifier, unavailable: config.AUTHZ_UNAVAILABLE }))
  }
}

function verifyRoutes(verifier: Verifier): FastifyPluginAsyncTypebox {
  return async (app) => {
    requireGateway(app, verifier)
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
            'invalid_request', 'malformed_body', 'unauthenticated', 'body_too_large', 'unsupported_media_type', 'database_unavailable', 'feed_stale', 'root_secret_missing', 'overloaded',
          ),
        },
      },
      ({ body, gateway }, reply) => {
        const verdict = verifier.verifyKey(body.key, gateway, body, reply)
        if (!(verdict instanceof Promise)) return sendText(reply, answerOf(verdict))
        return verdict.then((late) => sendText(reply, answerOf(late)))
      },
    )
  }
}

/**
 * Sends ASCII text with no header but these, in one write to the socket. `reply.send` makes two of it, of which the second
 * is empty, and each header is looked at once more: 3 of the 30 microseconds of a verify (`docs/performance.md`).
 */
function sendText(reply: FastifyReply, text: string): void {
  const { raw, request } = reply.hijack()
  raw.writeHead(200, {
    'content-type': 'application/json; charset=utf-8',
    'content-length': text.length,
    'cache-control': 'no-store',
    'x-request-id': request.id,
  })
  raw.write(text, 'latin1')
  raw.socket?.uncork()
  raw.end()
}
