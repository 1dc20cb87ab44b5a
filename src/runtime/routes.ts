/** The runtime plane: gateways ask whether a key is good. */

import type { FastifyPluginAsyncTypebox } from '@fastify/type-provider-typebox'
import type { Settings } from '../config.js'
import { answer, responses } from '../http/schemas.js'
import { answerOf } from './answer.js'
import { authzRoutes } from './authz.js'
import { decorateCallers, requireGateway } from './callers.js'
import type { OAuthParts } from './oauth/parts.js'
import { oauthRoutes } from './oauth/routes.js'
import { VerifyAnswer, VerifyBody } from './schemas.js'
import { createSender, type Headers, type Send } from './send.js'
import type { Verifier } from './verifier.js'

export interface RuntimeParts {
  readonly verifier: Verifier
  readonly oauth: OAuthParts
  readonly config: Settings
}

export function runtimePlane({ verifier, oauth, config }: RuntimeParts): FastifyPluginAsyncTypebox {
  return async (app) => {
    decorateCallers(app)
    // The schema of a body that comes here takes no field that is not in it, `__proto__` included: nothing is left to look for.
    app.removeContentTypeParser('application/json')
    app.addContentTypeParser('application/json', { parseAs: 'string' }, app.getDefaultJsonParser('ignore', 'ignore'))
    const send = createSender()
    await app.register(verifyRoutes(verifier, send))
    await app.register(authzRoutes({ verifier, send, unavailable: config.AUTHZ_UNAVAILABLE }))
    await app.register(oauthRoutes(oauth, config.PUBLIC_URL))
  }
}

const JSON_TYPE: Headers = ['content-type', 'application/json; charset=utf-8']

function verifyRoutes(verifier: Verifier, send: Send): FastifyPluginAsyncTypebox {
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
        if (!(verdict instanceof Promise)) return send(reply, JSON_TYPE, answerOf(verdict))
        return verdict.then((late) => send(reply, JSON_TYPE, answerOf(late)))
      },
    )
  }
}
