/** The runtime plane: gateways ask whether a key is good. */

import type { FastifyPluginAsyncTypebox, Static } from '@fastify/type-provider-typebox'
import type { FastifyReply } from 'fastify'
import { authenticateGateway, type Gateway } from '../auth/gateways.js'
import { answer, responses } from '../http/schemas.js'
import { parseHandle } from '../key/handle.js'
import { publicId } from '../key/id.js'
import { VerifyAnswer, VerifyBody } from './schemas.js'
import type { CredentialRow } from './store.js'
import type { Verdict, Verifier } from './verifier.js'

declare module 'fastify' {
  interface FastifyRequest {
    gateway: Gateway
  }
  interface FastifyReply {
    /** A signal that aborts when the caller hangs up before it has its answer. Made anew each time it is asked for. */
    readonly signal: AbortSignal
  }
}

type Answer = Static<typeof VerifyAnswer>

export function runtimePlane(verifier: Verifier): FastifyPluginAsyncTypebox {
  return async (app) => {
    app.decorateRequest('gateway')
    // Not `request.signal`: that one aborts as soon as the body has been read.
    app.decorateReply('signal', { getter: hangUpSignal })
    // Not asynchronous, as the handler below is not: what is in memory is answered without a promise.
    app.addHook('onRequest', (request, reply, done) => {
      reply.header('cache-control', 'no-store')
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
        reply.type('application/json; charset=utf-8')
        return verdict instanceof Promise ? verdict.then((late) => render(late, reply)) : render(verdict, reply)
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
 * An answer. That of a valid key is text, which is sent as it stands: the schema's serializer makes it once for a key,
 * and not with every verify of it.
 */
function render(verdict: Verdict, reply: FastifyReply): Answer {
  if ('code' in verdict) return { valid: false, code: verdict.code }
  return (verdict.key.answer ??= serialize(reply, validView(verdict.key.row))) as unknown as Answer
}

function serialize(reply: FastifyReply, view: Answer): string {
  return reply.serializeInput(view, '200', 'application/json') as string
}

function validView({ id, mecha, org_id, scopes, metadata, expires_at }: CredentialRow) {
  return {
    valid: true as const,
    key_id: publicId('mecha', id),
    mecha: parseHandle(mecha!),
    org_id: org_id!,
    scopes,
    metadata,
    expires_at: expires_at && expires_at.toISOString(),
  }
}
