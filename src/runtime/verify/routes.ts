/** `POST /v1/verify` and `POST /v1/verify/batch`: is a key good? */

import type { FastifyPluginAsyncTypebox } from '@fastify/type-provider-typebox'
import type { FastifyReply } from 'fastify'
import type { Clock } from '../../clock.js'
import { isShed } from '../../http/problems.js'
import { answer, responses } from '../../http/schemas.js'
import type { Feed } from '../changes/feed.js'
import { GATEWAY_ERRORS, requireGateway } from '../gateway-auth/callers.js'
import { answerOf } from './answer.js'
import { MAX_BATCH, VerifyAnswer, VerifyBatchAnswer, VerifyBatchBody, VerifyBody } from './schemas.js'
import { sendProblem, type Headers, type Send } from './send.js'
import type { Verdict, Verifier } from './verifier.js'

export interface VerifyRoutesDeps {
  readonly verifier: Verifier
  readonly clock: Clock
  readonly feed: Pick<Feed, 'confirmedAt' | 'historyToken'>
  readonly send: Send
}

/** Bytes, enough for every batch that the schema takes. */
const BATCH_BODY_LIMIT = 1024 * 1024

const VERIFY = [
  'With `Prefer: freshness` (RFC 7240), `X-Feed-Age` says how many milliseconds ago everything that had been committed was known here.',
  'Who holds answers and follows `/v1/changes` may hold one only if it is not older than the last change that was told of its key: it may come from another replica than the stream.',
  '`X-Feed-History` names the history of the database that it was answered out of: it has to be that of the stream. `X-Key-Version` names the version of the key, for `/v1/revalidate`.',
].join(' ')

const JSON_TYPE: Headers = ['content-type', 'application/json; charset=utf-8']

export function verifyRoutes({ verifier, clock, feed, send }: VerifyRoutesDeps): FastifyPluginAsyncTypebox {
  return async (app) => {
    requireGateway(app, verifier)
    // Every other error is answered by the handler of the whole app.
    app.setErrorHandler((error, _request, reply) => {
      if (!isShed(error)) throw error
      sendProblem(send, reply, error)
    })

    function sendVerdict(reply: FastifyReply, verdict: Verdict): void {
      send(reply, JSON_TYPE, answerOf(verdict))
    }

    /** For callers that cache answers and follow the changes of another replica: which of the changes told there this answer includes. */
    function sendWithFreshness(reply: FastifyReply, verdict: Verdict): void {
      // Rounded up, so that an answer never looks younger than it is; `Infinity` before the feed has confirmed anything.
      const age = String(Math.ceil(clock.now() - feed.confirmedAt))
      const version = typeof verdict === 'string' ? [] : ['x-key-version', String(verdict.version)]
      send(reply, [...JSON_TYPE, 'x-feed-age', age, 'x-feed-history', feed.historyToken, ...version, 'preference-applied', 'freshness'], answerOf(verdict))
    }

    app.post(
      '/v1/verify',
      {
        schema: {
          tags: ['runtime'],
          operationId: 'verifyKey',
          summary: 'Is this key good, for this Mecha and these scopes?',
          description: VERIFY,
          security: [{ gateway: [] }],
          body: VerifyBody,
          response: responses({ 200: answer('The verdict, valid or not', VerifyAnswer) }, ...GATEWAY_ERRORS),
        },
      },
      ({ body, gateway, headers }, reply) => {
        const answer = headers.prefer === 'freshness' ? sendWithFreshness : sendVerdict
        const verdict = verifier.verifyKey(body.key, gateway, body, reply)
        if (!(verdict instanceof Promise)) return answer(reply, verdict)
        return verdict.then((late) => answer(reply, late))
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
          response: responses({ 200: answer('The verdicts, in the order of the keys', VerifyBatchAnswer) }, ...GATEWAY_ERRORS),
        },
      },
      async ({ body, gateway }, reply) => {
        const verdicts = await verifier.verifyKeys(body.keys, gateway, reply)
        send(reply, JSON_TYPE, `{"results":[${verdicts.map(answerOf).join()}]}`)
      },
    )
  }
}
