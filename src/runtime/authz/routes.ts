/**
 * `/v1/authz`: what a proxy asks before it lets a request through. It takes any method, any path below, and no notice
 * of a body. It answers 200 with the key's identity in headers, 401 or 403, and nothing else, because nginx turns
 * anything else into a 500; 503 only where `AUTHZ_UNAVAILABLE` asks for it.
 */

import { METHODS, type IncomingMessage } from 'node:http'
import type { FastifyPluginAsyncTypebox } from '@fastify/type-provider-typebox'
import type { FastifyReply, FastifyRequest, HTTPMethods, onRequestHookHandler } from 'fastify'
import { bearerToken } from '../../protocol/bearer.js'
import { challenge } from '../../http/challenge.js'
import { Problem } from '../../errors.js'
import { answerProblem, loggedProblem } from '../../http/problems.js'
import { emptyAnswer, responses } from '../../http/schemas.js'
import { Type } from '../../http/type.js'
import { containsToken } from '../../credentials/token.js'
import type { RefusalCode, Requirements } from '../../protocol/verdict.js'
import type { CachedKey } from '../verify/credential-cache.js'
import { requirementsOf } from './requirements.js'
import { identityOf, NOBODY } from './identity-headers.js'
import type { Send } from '../verify/send.js'
import type { Asker, Verdict, Verifier } from '../verify/verifier.js'

export interface AuthzParts {
  readonly verifier: Verifier
  readonly send: Send
  /** The status while nobody can say whether a key is good. */
  readonly unavailable: 403 | 503
  /** In whose name everybody asks who needs no credential to. */
  readonly everybody?: Asker
}

/** The key that is let through, or why none is. */
type Outcome = CachedKey | Problem

const PATH = '/v1/authz'
const TARGET = /^(?:https?:\/\/[^/?#]*)?\/v1\/authz(?=[/?#]|$)[^?]*/
/** `CONNECT` names no path. */
const TAKEN = METHODS.filter((method) => method !== 'CONNECT') as HTTPMethods[]

/** Whether a request's target is `/v1/authz` or below. */
export function isForAuthz(target: string): boolean {
  return TARGET.test(target)
}

/** A target without what stands below `/v1/authz`, which may be any path at all: too long to route, or not to be decoded. */
export function withoutSubPath(target: string): string {
  return target.replace(TARGET, PATH)
}

/** A problem as a proxy may be told it: with no other status than it can take, and with every header that it copies. */
export function asRefusal({ code, detail, extra, status }: Problem, unavailable: 403 | 503): Problem {
  return new Problem(code, detail, {
    ...extra,
    status: status === 401 ? 401 : status >= 500 ? unavailable : 403,
    headers: { ...extra.headers, ...NOBODY },
  })
}

/** Serves `/v1/authz`, on a server that routes by {@link withoutSubPath}. */
export function authzRoutes({ verifier, send, unavailable, everybody }: AuthzParts): FastifyPluginAsyncTypebox {
  const noGateway = asRefusal(NO_GATEWAY, unavailable)
  // Before a body is looked at: it is none of ours, and Node.js reads past it.
  const onRequest: onRequestHookHandler = (request, reply, done) => {
    const outcome = decide(request, reply)
    if (!(outcome instanceof Promise)) return tell(reply, outcome)
    outcome.then((late) => tell(reply, late)).catch(done)
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

  function tell(reply: FastifyReply, outcome: Outcome): void {
    if (outcome instanceof Problem) return void answerProblem(reply, outcome)
    send(reply, outcome.identity ??= identityOf(outcome), '')
  }

  return async (app) => {
    app.setErrorHandler((error, request, reply) => {
      return answerProblem(reply, asRefusal(loggedProblem(error, request), unavailable))
    })
    for (const method of TAKEN) if (!app.supportedMethods.includes(method)) app.addHttpMethod(method)
    const route = { url: PATH, onRequest, handler: () => undefined, exposeHeadRoute: false }
    app.route({ ...route, method: 'GET', schema: SCHEMA })
    app.route({ ...route, method: TAKEN.filter((method) => method !== 'GET'), schema: { hide: true } })
  }
}

/** The key in either header. Beside one in a header of its own, `Authorization` is the application's. */
function keyFrom(request: IncomingMessage): string | Problem {
  const { authorization = '' } = request.headers
  const own = textOf(request, 'x-mecha-key')
  if (own === '') return hasSecondAuthorization(request) ? TWO_KEYS : (bearerToken(authorization) ?? NO_KEY)
  // Node.js joins what is there more than once, and no key has a comma.
  if (own.includes(',')) return TWO_KEYS
  // A proxy takes away the one that counts: the other would get through to the application.
  return authorizations(request).some(containsToken) ? TWO_KEYS : own
}

function textOf({ headers }: IncomingMessage, name: 'x-mecha-key' | 'x-gateway-authorization'): string {
  return (headers[name] as string | undefined) ?? ''
}

/** Every value of `Authorization`: of several, Node.js knows the first alone, and an application may be sent them all. */
function authorizations({ headers, rawHeaders }: IncomingMessage): readonly string[] {
  return headers.authorization === undefined ? [] : rawHeaders.filter((_, i) => i % 2 === 1 && isAuthorization(rawHeaders[i - 1]!))
}

function hasSecondAuthorization({ headers, rawHeaders }: IncomingMessage): boolean {
  if (headers.authorization === undefined) return false
  let count = 0
  for (let i = 0; i < rawHeaders.length; i += 2) if (isAuthorization(rawHeaders[i]!)) count++
  return count > 1
}

function isAuthorization(name: string): boolean {
  return name.length === 13 && name.toLowerCase() === 'authorization'
}

// ── Refusals. Made once where they can be: to make an error takes longer than to refuse a key. ──

/** Not a 401: a runtime would take that for its key, and throw a good one away. Which of all it is, is for the log. */
const NO_GATEWAY = new Problem('gateway_unauthenticated', 'The proxy has to show a good gateway credential: X-Gateway-Authorization: Bearer <credential>. The key was not looked at.', { headers: { 'retry-after': '1' } })
const NO_KEY = unauthenticated('Send a Mecha key: X-Mecha-Key: <key>, or Authorization: Bearer <key>.')
/** RFC 6750, section 2: a client sends one. */
const TWO_KEYS = unauthenticated('Send the key in one header, not in two.', 'invalid_token')
const INVALID: Record<Exclude<RefusalCode, 'mecha_mismatch' | 'insufficient_scope'>, Problem> = {
  malformed: unauthenticated('This is not a Mecha key.', 'invalid_token'),
  unknown: unauthenticated('There is no such key.', 'invalid_token'),
  revoked: unauthenticated('The key is revoked.', 'invalid_token'),
  expired: unauthenticated('The key has expired.', 'invalid_token'),
  disabled: unauthenticated('The key is disabled.', 'invalid_token'),
}
const OTHER_MECHA = forbidden('mecha_mismatch', 'The key is of another Mecha.')
/** What a challenge may name (RFC 6750, section 3): the proxy's own text, unless it leaves the client's query in place. */
const SCOPE = /^[\x21\x23-\x5b\x5d-\x7e]{1,128}$/

function refusedKey(code: RefusalCode, { scopes = [] }: Requirements): Problem {
  if (code === 'mecha_mismatch') return OTHER_MECHA
  if (code !== 'insufficient_scope') return INVALID[code]
  const named = scopes.join(' ')
  const isFit = scopes.every((scope) => SCOPE.test(scope)) && scopes.length <= 50 && !containsToken(named)
  return forbidden(code, 'The key does not have every scope that is asked for.', isFit ? { scope: named } : {})
}

function unauthenticated(detail: string, error?: 'invalid_token'): Problem {
  const headers = { 'www-authenticate': challenge(error ? { error, error_description: detail } : undefined), ...NOBODY }
  return new Problem('unauthenticated', detail, { headers })
}

function forbidden(code: 'mecha_mismatch' | 'insufficient_scope', detail: string, more: { readonly scope?: string } = {}): Problem {
  const headers = { 'www-authenticate': challenge({ error: 'insufficient_scope', error_description: detail, ...more }), ...NOBODY }
  return new Problem(code, detail, { headers })
}

// ── The contract ──

const SCHEMA = {
  tags: ['runtime'],
  operationId: 'authorize',
  summary: 'May this request pass? For proxies',
  description: [
    'Takes any method and any path below `/v1/authz`, as proxies send them, and reads no body. The key is in `X-Mecha-Key`, or is the bearer token of `Authorization`.',
    'Answers nothing but 200, 401 and 403 (and 503, where `AUTHZ_UNAVAILABLE=503` is set), and has every `X-Mecha-…` header in every answer: empty, unless it is 200. A 401 is of the key alone.',
    'On the address of `AUTHZ_LISTEN` no gateway credential is needed.',
  ].join('\n\n'),
  security: [{ proxy: [], mechaKey: [] }],
  querystring: Type.Object({
    scope: Type.Optional(Type.String({ description: 'Scopes that the key must have, all of them: separated by spaces, or in parameters of their own', examples: ['orders:read'] })),
    mecha: Type.Optional(Type.String({ description: 'The Mecha that the key must be of', examples: ['sales^acmecorp'] })),
    request: Type.Optional(Type.String({ description: 'Whatever stands from here on is not read: for proxies that append the path and the query that they were asked for' })),
  }),
  response: responses(
    {
      200: emptyAnswer('It may', {
        'X-Mecha-Id': "What is this Mecha's alone: its handle",
        'X-Mecha-Handle': '`name^crew`',
        'X-Mecha-Crew': 'The crew',
        'X-Mecha-Org': 'The organization',
        'X-Mecha-Scopes': 'All scopes of the key, separated by spaces; may be empty',
        'X-Mecha-Key-Id': 'Id of the key',
      }),
    },
    'unauthenticated', 'insufficient_scope', 'mecha_mismatch', 'gateway_unauthenticated', 'database_unavailable', 'feed_stale', 'database_restored', 'root_secret_missing', 'overloaded',
  ),
}
