/**
 * `/v1/authz`: what a proxy asks before it lets a request through. It takes any method, any path below, and no notice
 * of a body. It answers 200 with the key's identity in headers, 401 or 403, and nothing else, because nginx turns
 * anything else into a 500; 503 only where `AUTHZ_UNAVAILABLE` asks for it.
 */

import { METHODS } from 'node:http'
import type { FastifyPluginAsyncTypebox } from '@fastify/type-provider-typebox'
import type { FastifyReply, FastifyRequest, HTTPMethods, onRequestHookHandler } from 'fastify'
import { Problem } from '../../errors.js'
import { answerProblem, loggedProblem } from '../../http/problems.js'
import { bearerToken } from '../../protocol/bearer.js'
import type { CachedKey } from '../verify/credential-cache.js'
import type { Send } from '../verify/send.js'
import type { Asker, Verdict, Verifier } from '../verify/verifier.js'
import { identityOf } from './identity-headers.js'
import { keyFrom, textOf } from './presented-key.js'
import { asRefusal, NO_GATEWAY, refusedKey } from './refusals.js'
import { requirementsOf } from './requirements.js'
import { AUTHZ_SCHEMA } from './schemas.js'
import { PATH } from './target.js'

export interface AuthzDeps {
  readonly verifier: Verifier
  readonly send: Send
  /** The status while nobody can say whether a key is good. */
  readonly unavailable: 403 | 503
  /** In whose name every caller asks, where none needs a credential. */
  readonly everybody?: Asker
}

/** The key that is let through, or why none is. */
type Outcome = CachedKey | Problem

/** Every method but `CONNECT`, which names no path. */
const TAKEN = METHODS.filter((method) => method !== 'CONNECT') as HTTPMethods[]

/** Serves `/v1/authz`, on a server that routes without what stands below it (`target.ts`). */
export function authzRoutes({ verifier, send, unavailable, everybody }: AuthzDeps): FastifyPluginAsyncTypebox {
  const noGateway = asRefusal(NO_GATEWAY, unavailable)
  // In `onRequest`, before a body is looked at: authz has no use for one, and Node.js reads past it.
  const onRequest: onRequestHookHandler = (request, reply, done) => {
    const outcome = decide(request, reply)
    if (!(outcome instanceof Promise)) return respond(reply, outcome)
    outcome.then((late) => respond(reply, late)).catch(done)
  }

  function decide(request: FastifyRequest, reply: FastifyReply): Outcome | Promise<Outcome> {
    if (everybody) return checkKey(everybody, request, reply)
    const credential = bearerToken(textOf(request.raw, 'x-gateway-authorization'))
    const verdict = credential === undefined ? 'missing' : verifier.checkGateway(credential, reply)
    if (!(verdict instanceof Promise)) return checkFor(verdict, request, reply)
    return verdict.then((late) => checkFor(late, request, reply))
  }

  function checkFor(gateway: Verdict | 'missing', request: FastifyRequest, reply: FastifyReply): Outcome | Promise<Outcome> {
    if (typeof gateway === 'string') {
      request.log.warn({ code: noGateway.code, cause: `X-Gateway-Authorization: ${gateway}` }, 'request refused')
      return noGateway
    }
    request.gateway = gateway
    return checkKey(gateway, request, reply)
  }

  function checkKey(asker: Asker, { raw }: FastifyRequest, reply: FastifyReply): Outcome | Promise<Outcome> {
    const key = keyFrom(raw)
    if (typeof key !== 'string') return key
    const requirements = requirementsOf(raw.url!)
    const verdict = verifier.verifyKey(key, asker, requirements, reply)
    if (!(verdict instanceof Promise)) return typeof verdict === 'string' ? refusedKey(verdict, requirements) : verdict
    return verdict.then((late) => (typeof late === 'string' ? refusedKey(late, requirements) : late))
  }

  function respond(reply: FastifyReply, outcome: Outcome): void {
    if (outcome instanceof Problem) return void answerProblem(reply, outcome)
    send(reply, outcome.identity ??= identityOf(outcome), '')
  }

  return async (app) => {
    app.setErrorHandler((error, request, reply) => {
      return answerProblem(reply, asRefusal(loggedProblem(error, request), unavailable))
    })
    for (const method of TAKEN) if (!app.supportedMethods.includes(method)) app.addHttpMethod(method)
    const route = { url: PATH, onRequest, handler: () => undefined, exposeHeadRoute: false }
    app.route({ ...route, method: 'GET', schema: AUTHZ_SCHEMA })
    app.route({ ...route, method: TAKEN.filter((method) => method !== 'GET'), schema: { hide: true } })
  }
}
