/** `GET /v1/changes`: what a gateway needs to drop a key that it holds, and to know when it may no longer rely on one. */

import type { FastifyPluginAsyncTypebox } from '@fastify/type-provider-typebox'
import { authenticateGateway } from '../gateway-auth/authenticate.js'
import { feedStale, overloaded } from '../../errors.js'
import { dropCredentials } from '../../http/headers.js'
import { responses } from '../../http/schemas.js'
import { Type } from '../../http/type.js'
import { requireGateway, type GatewayAuthenticator } from '../gateway-auth/callers.js'
import type { Feed } from './feed.js'
import type { ChangeStreams } from './sse.js'

export interface ChangesParts {
  readonly verifier: GatewayAuthenticator
  readonly feed: Pick<Feed, 'isFresh' | 'missedSince'>
  readonly streams: ChangeStreams
}

const DESCRIPTION = [
  'Server-sent events, for as long as the gateway listens. Three kinds:',
  '`reset` `{}`: any key may have changed. The first event of a stream, unless `Last-Event-ID` says where to go on and that can be done to the letter.',
  '`changed` `{"key_ids": ["key_…"]}`: these keys of the organization were revoked, disabled or changed in any other way. Drop what is held of them.',
  '`confirmed` `{"confirmed_ms": 1200, "database_time": "…", "history": "…"}`, every second or more often: everything that was committed up to `confirmed_ms` milliseconds after the stream was opened has been told, and `database_time` was the time then, by which keys expire. Count from when the stream was **asked for** and not from when this arrived, so that nothing that waits on the way looks younger than it is; do not rely on what is held for longer than the bound after that moment. `history` names the history of the database that the replica follows, as `X-Feed-History` does with an answer: what was answered out of another one must not be held.',
  'A replica that has lost the feed itself confirms nothing, and ends its streams. A stream also ends when its gateway is revoked or does not read: come back with `Last-Event-ID`, with any replica.',
].join('\n\n')

/** How often a credential that changes meanwhile is asked about again. */
const ATTEMPTS = 3

export function changesRoutes({ verifier, feed, streams }: ChangesParts): FastifyPluginAsyncTypebox {
  return async (app) => {
    requireGateway(app, verifier)
    app.get(
      '/v1/changes',
      {
        exposeHeadRoute: false,
        schema: {
          tags: ['runtime'],
          operationId: 'followChanges',
          summary: 'Which keys have changed, as it happens',
          description: DESCRIPTION,
          security: [{ gateway: [] }],
          headers: Type.Object({ 'last-event-id': Type.Optional(Type.String({ maxLength: 2048, description: '`id` of the last event that was taken in' })) }),
          response: responses(
            { 200: { description: 'The stream', headers: { 'Cache-Control': { type: 'string', description: '`no-store`' } }, content: { 'text/event-stream': { schema: Type.String() } } } },
            'invalid_request', 'unauthenticated', 'database_unavailable', 'feed_stale', 'database_restored', 'root_secret_missing', 'overloaded',
          ),
        },
      },
      async (request, reply) => {
        if (!feed.isFresh()) throw feedStale()
        const position = request.headers['last-event-id']
        const leave = streams.admit(request.gateway)
        try {
          for (let attempt = 0; attempt < ATTEMPTS; attempt++) {
            const missed = position === undefined ? undefined : await feed.missedSince(position)
            // It may have been revoked since it was let in. Nothing may come between this look and the opening.
            const gateway = authenticateGateway(request.headers.authorization, (credential) => verifier.verifyGateway(credential, reply))
            if (gateway instanceof Promise) {
              await gateway
              continue
            }
            dropCredentials(request.raw)
            return void streams.open(gateway, reply.hijack().raw, { 'x-request-id': request.id }, missed)
          }
          throw overloaded()
        } finally {
          leave()
        }
      },
    )
  }
}
