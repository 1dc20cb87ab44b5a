/** The runtime plane: gateways ask whether a key is good. */

import type { FastifyPluginAsyncTypebox } from '@fastify/type-provider-typebox'
import type { FastifyReply } from 'fastify'
import { authenticateGateway, type Gateway } from '../auth/gateways.js'
import { answer, responses } from '../http/schemas.js'
import { answerOf } from './answer.js'
import { VerifyAnswer, VerifyBody } from './schemas.js'
import type { Verifier } from './verifier.js'

declare module 'fastify' {
  interface FastifyRequest {
    gateway: Gateway
  }
  interface FastifyReply {
    /** A signal that aborts when the caller hangs up before it has its answer. Made anew each time it is asked for. */
    readonly signal: AbortSignal
  }
}

export function runtimePlane(verifier: Verifier): FastifyPluginAsyncTypebox {
  return async (app) => {
    app.decorateRequest('gateway')
    // Not `request.signal`: that one aborts as soon as the body has been read.
    app.decorateReply('signal', { getter: hangUpSignal })
    // The schema of a body that comes here takes no field that is not in it, `__proto__` included: nothing is left to look for.
    app.removeContentTypeParser('application/json')
    app.addContentTypeParser('application/json', { parseAs: 'string' }, app.getDefaultJsonParser('ignore', 'ignore'))
    // Not asynchronous, as the handler below is not: what is in memory is answered without a promise.
    app.addHook('onRequest', (request, reply, done) => {
      const gateway = authenticateGateway(request.headers.authorization, (credential) => verifier.verifyGateway(credential, reply))
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

function hangUpSignal(this: FastifyReply): AbortSignal {
  const { raw } = this
  const controller = new AbortController()
  raw.once('close', () => raw.writableFinished || controller.abort())
  return controller.signal
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
