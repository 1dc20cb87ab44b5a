/** `POST /v1/revalidate`: a gateway that caches answers asks whether their keys are still in the versions that it has, whatever changes it was told of. */

import type { FastifyPluginAsyncTypebox } from '@fastify/type-provider-typebox'
import { answer, responses } from '../../http/schemas.js'
import { parsePublicId, publicId } from '../../credentials/id.js'
import { GATEWAY_ERRORS, requireGateway, type GatewayAuthenticator } from '../gateway-auth/callers.js'
import type { Feed } from '../changes/feed.js'
import { MAX_REVALIDATED, RevalidateBody, Revalidated } from './schemas.js'
import type { CachedVersion } from './store.js'

export interface RevalidateDeps {
  readonly verifier: GatewayAuthenticator
  readonly feed: Pick<Feed, 'historyToken'>
  /** Asks the database itself, and not what is in memory here. */
  readonly findChanged: (cached: readonly CachedVersion[], asker: { readonly orgId: string | null }) => Promise<{ readonly changed: readonly string[] }>
}

/** Bytes: the most keys, with a version that is as long as it may be. */
const BODY_LIMIT = 256 * 1024

export function revalidateRoutes({ verifier, feed, findChanged }: RevalidateDeps): FastifyPluginAsyncTypebox {
  return async (app) => {
    requireGateway(app, verifier)
    app.post(
      '/v1/revalidate',
      {
        bodyLimit: BODY_LIMIT,
        schema: {
          tags: ['runtime'],
          operationId: 'revalidateKeys',
          summary: `Which of up to ${MAX_REVALIDATED} keys are no longer what they were when they were verified?`,
          description: 'Compares the versions that `X-Key-Version` named with the database itself. Keys that are unknown, or of another organization, count as changed. For who holds answers: compare each from time to time, and drop what has changed.',
          security: [{ gateway: [] }],
          body: RevalidateBody,
          response: responses(
            { 200: answer('The keys that have changed', Revalidated) },
            ...GATEWAY_ERRORS,
          ),
        },
      },
      async ({ body, gateway }, reply) => {
        const cached = body.keys.map(({ key_id, version }) => ({ id: parsePublicId('mecha', key_id)!, version: versionOf(version) }))
        const { changed } = await findChanged(cached, { orgId: gateway.org_id })
        void reply.headers({ 'cache-control': 'no-store', 'x-feed-history': feed.historyToken })
        return { changed: changed.map((id) => publicId('mecha', id)) }
      },
    )
  }
}

/** A text that cannot be a version counts as one that no key has. */
function versionOf(text: string): number {
  return /^\d{1,10}$/.test(text) ? Number(text) : -1
}
