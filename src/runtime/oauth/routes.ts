/** The OAuth side of the runtime plane: introspection, exchange, and what gateways need to verify offline. */

import type { FastifyPluginAsyncTypebox } from '@fastify/type-provider-typebox'
import { authenticateClient } from '../gateway-auth/authenticate.js'
import { Problem } from '../../errors.js'
import { preferredType } from '../../http/headers.js'
import { FORM, speakOAuth } from '../../http/oauth-errors.js'
import { limitAddresses } from '../../http/rate-limit.js'
import { answer, oauthResponses, responses } from '../../http/schemas.js'
import { Type } from '../../http/type.js'
import { JWKS_MAX_AGE } from '../../credentials/signing-key.js'
import { requireGateway } from '../gateway-auth/callers.js'
import { exchange } from './exchange.js'
import { introspect, signIntrospection } from './introspect.js'
import { JWKS_PATH, METADATA_PATH, metadataOf, metadataPaths } from './metadata.js'
import type { OAuthParts } from './deps.js'
import { IntrospectBody, INTROSPECTION_TYP, Introspection, Jwks, Metadata, TokenAnswer, TokenBody } from './schemas.js'
import { STATUS_LIST_PATH } from './status-list.js'

const SIGNED_INTROSPECTION = `application/${INTROSPECTION_TYP}`
const STATUS_LIST = 'application/statuslist+jwt'
const JWK_SET = 'application/jwk-set+json'

/** @param publicUrl `PUBLIC_URL`, whose path the place of the metadata depends on */
export function oauthRoutes(parts: OAuthParts, publicUrl: string | undefined): FastifyPluginAsyncTypebox {
  return async (app) => {
    await app.register(introspectionRoutes(parts))
    await app.register(exchangeRoutes(parts))
    await app.register(wellKnownRoutes(parts, publicUrl))
  }
}

function introspectionRoutes(parts: OAuthParts): FastifyPluginAsyncTypebox {
  return async (app) => {
    await speakOAuth(app)
    requireGateway(app, parts.verifier, authenticateClient)
    // RFC 9110, section 12.5.5, though nobody may keep it: what stands between may look at it.
    app.addHook('onRequest', (_request, reply, done) => {
      reply.header('vary', 'Accept')
      done()
    })
    const success = answer('What the token is, or that it is not active and nothing more', Introspection, { Vary: '`Accept`' })
    app.post(
      '/v1/introspect',
      {
        schema: {
          tags: ['runtime'], operationId: 'introspectToken', consumes: [FORM],
          summary: `Is this key, or this JWT, good? (RFC 7662; signed for \`Accept: ${SIGNED_INTROSPECTION}\`, RFC 9701)`,
          security: [{ gateway: [] }, { gatewayBasic: [] }],
          body: IntrospectBody,
          response: oauthResponses(
            { 200: { ...success, content: { ...success.content, [SIGNED_INTROSPECTION]: { schema: Type.String({ description: 'The same as a JWT' }) } } } },
            'invalid_request', 'unauthenticated', 'body_too_large', 'unsupported_media_type',
            'database_unavailable', 'feed_stale', 'database_restored', 'root_secret_missing', 'overloaded', 'signing_key_unavailable',
          ),
        },
      },
      async (request, reply) => {
        const { gateway, body } = request
        const introspection = await introspect(parts, body.token, gateway, reply)
        if (preferredType(request, ['application/json', SIGNED_INTROSPECTION]) !== SIGNED_INTROSPECTION) return introspection
        return reply.type(SIGNED_INTROSPECTION).send(await signIntrospection(parts, introspection, gateway))
      },
    )
  }
}

function exchangeRoutes(parts: OAuthParts): FastifyPluginAsyncTypebox {
  return async (app) => {
    await speakOAuth(app)
    await limitAddresses(app, parts.perMinute.address)
    // Nobody has to say who they are. Who does has to be it: a credential that is wrong is not passed over (RFC 6749, section 5.2).
    // Not in `onRequest`: the call has been counted by now.
    app.addHook('preParsing', async (request, reply) => {
      const { authorization } = request.headers
      if (authorization) request.gateway = await authenticateClient(authorization, (credential) => parts.verifier.verifyGateway(credential, reply))
    })
    app.post(
      '/v1/token',
      {
        schema: {
          tags: ['runtime'], operationId: 'exchangeKey', consumes: [FORM],
          summary: 'Exchange a key for a JWT of a few minutes (RFC 8693). The key is the credential: nothing else is asked for',
          security: [],
          body: TokenBody,
          response: oauthResponses(
            { 200: answer('The JWT', TokenAnswer) },
            'unsupported_grant_type', 'invalid_request', 'invalid_subject_token', 'invalid_scope', 'invalid_target', 'unauthenticated', 'body_too_large', 'unsupported_media_type', 'rate_limited',
            'database_unavailable', 'feed_stale', 'database_restored', 'root_secret_missing', 'overloaded', 'signing_key_unavailable',
          ),
        },
      },
      async ({ body }, reply) => exchange(parts, body, reply),
    )
  }
}

/** What anybody may have, pages of any origin too, and may keep for a while. */
function wellKnownRoutes({ keyring, statusList, issuer }: OAuthParts, publicUrl: string | undefined): FastifyPluginAsyncTypebox {
  return async (app) => {
    app.addHook('onRequest', (_request, reply, done) => {
      reply.header('access-control-allow-origin', '*')
      done()
    })
    for (const path of metadataPaths(publicUrl))
      app.get(
        path,
        {
          schema: {
            tags: ['runtime'], operationId: 'oauthMetadata', summary: 'Where everything is, for OAuth clients (RFC 8414)', security: [], hide: path !== METADATA_PATH,
            response: responses({ 200: published('The metadata', 'application/json', Metadata) }, 'headers_too_large'),
          },
        },
        async (_request, reply) => reply.header('cache-control', `public, max-age=${JWKS_MAX_AGE}`).send(metadataOf(issuer())),
      )

    app.get(
      JWKS_PATH,
      {
        schema: {
          tags: ['runtime'], operationId: 'publicKeys', summary: 'The public keys of all that is signed here (RFC 7517)', security: [],
          response: responses({ 200: published('The keys', JWK_SET, Jwks) }, 'headers_too_large', 'database_unavailable', 'overloaded', 'signing_key_unavailable'),
        },
      },
      async (_request, reply) => {
        const keys = (await keyring.keys()).published.map(({ jwk }) => jwk)
        return reply.header('cache-control', `public, max-age=${JWKS_MAX_AGE}`).type(JWK_SET).send({ keys })
      },
    )

    app.get(
      STATUS_LIST_PATH,
      {
        schema: {
          tags: ['runtime'], operationId: 'tokenStatus', summary: 'Which exchanged JWTs have ended before their time (Token Status List)', security: [],
          response: responses(
            { 200: published('The list', STATUS_LIST, Type.String({ description: 'A JWT of the type `statuslist+jwt`' }), { ETag: 'Of this list', Vary: '`Accept`' }) },
            'not_acceptable', 'database_unavailable', 'overloaded', 'signing_key_unavailable',
          ),
        },
      },
      async (request, reply) => {
        reply.header('vary', 'Accept')
        if (!preferredType(request, [STATUS_LIST])) throw new Problem('not_acceptable', `The list can be had as ${STATUS_LIST}, and as nothing else.`)
        const { jwt, etag, maxAge } = await statusList.current()
        reply.headers({ 'cache-control': `public, max-age=${maxAge}`, etag })
        // The contract has no 304, as no client looks for it there.
        if (isTagIn(request.headers['if-none-match'], etag)) return reply.code(304 as 200).send()
        return reply.type(STATUS_LIST).send(jwt)
      },
    )
  }
}

/** RFC 9110, section 13.1.2. A proxy that compresses makes weak tags of strong ones, which are compared all the same. */
function isTagIn(header: string | undefined, etag: string): boolean {
  return header?.split(',').some((one) => ['*', etag].includes(one.trim().replace(/^W\//, ''))) ?? false
}

function published<T>(description: string, type: string, schema: T, headers: Record<string, string> = {}) {
  const own = Object.fromEntries(Object.entries({ 'Cache-Control': 'How long it may be kept', 'Access-Control-Allow-Origin': '`*`', ...headers }).map(([name, about]) => [name, { type: 'string', description: about }]))
  return { description, headers: own, content: { [type]: { schema } } }
}
