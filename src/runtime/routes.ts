/** The runtime plane: gateways ask whether a key is good. */

import type { FastifyPluginAsyncTypebox } from '@fastify/type-provider-typebox'
import type { FastifyReply } from 'fastify'
import type { ErrorCode } from '../errors.js'
import { answer, responses } from '../http/schemas.js'
import { answerOf } from './answer.js'
import { decorateCallers, requireGateway } from './callers.js'
import { nonceRoutes, type NonceParts } from './nonces.js'
import { revokeTokenRoutes, type RevokeTokenParts } from './revoke-token.js'
import { MAX_BATCH, VerifyAnswer, VerifyBatchAnswer, VerifyBatchBody, VerifyBody } from './schemas.js'
import type { Verifier } from './verifier.js'

/** Bytes: every batch that the schema takes, whatever is asked of its keys. */
const BATCH_BODY_LIMIT = 1024 * 1024

/** The problems of routes that ask about keys. */
const ASKING = [
  'invalid_request', 'malformed_body', 'unauthenticated', 'body_too_large', 'unsupported_media_type', 'database_unavailable', 'feed_stale', 'root_secret_missing', 'overloaded',
] satisfies ErrorCode[]

export interface RuntimeParts {
  readonly verifier: Verifier
  readonly revocation: RevokeTokenParts
  readonly nonces: NonceParts
}

export function runtimePlane({ verifier, revocation, nonces }: RuntimeParts): FastifyPluginAsyncTypebox {
  return async (app) => {
    decorateCallers(app)
    // The schema of a body that comes here takes no field that is not in it, `__proto__` included: nothing is left to look for.
    app.removeContentTypeParser('application/json')
    app.addContentTypeParser('application/json', { parseAs: 'string' }, app.getDefaultJsonParser('ignore', 'ignore'))
    await app.register(verifyRoutes(verifier))
    await app.register(revokeTokenRoutes(revocation))
    await app.register(nonceRoutes(nonces))
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
          response: responses({ 200: answer('The verdict, valid or not', VerifyAnswer) }, ...ASKING),
        },
      },
      ({ body, gateway }, reply) => {
        const verdict = verifier.verifyKey(body.key, gateway, body, reply)
        if (!(verdict instanceof Promise)) return sendText(reply, answerOf(verdict))
        return verdict.then((late) => sendText(reply, answerOf(late)))
      },
    )

    app.post(
      '/v1/verify/batch',
      {
        bodyLimit: BATCH_BODY_LIMIT,
        schema: {
          tags: ['runtime'],
          operationId: 'verifyKeys',
          summary: `As verify, of up to ${MAX_BATCH} keys. Where one of them cannot be decided now, the whole is answered with that problem`,
          security: [{ gateway: [] }],
          body: VerifyBatchBody,
          response: responses({ 200: answer('The verdicts, in the order of the keys', VerifyBatchAnswer) }, ...ASKING),
        },
      },
      async ({ body, gateway }, reply) => {
        const verdicts = await verifier.verifyKeys(body.keys, gateway, reply)
        sendText(reply, `{"results":[${verdicts.map(answerOf).join()}]}`)
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
