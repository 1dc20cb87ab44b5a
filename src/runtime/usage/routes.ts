/** Uses of keys that gateways answered for from their own memory. */

import type { FastifyPluginAsyncTypebox } from '@fastify/type-provider-typebox'
import { invalid } from '../../errors.js'
import { parseTimestamp } from '../../protocol/signature.js'
import { answer, responses } from '../../http/schemas.js'
import { parsePublicId } from '../../credentials/id.js'
import { GATEWAY_ERRORS, requireGateway, type GatewayAuthenticator } from '../gateway-auth/callers.js'
import type { Feed } from '../changes/feed.js'
import { MAX_USES, UsageBody, UsageTaken } from './schemas.js'
import type { UsageRecorder } from './recorder.js'

/** Bytes: every report that the schema takes. */
const REPORT_BODY_LIMIT = 128 * 1024

export interface UsageRoutesDeps {
  readonly usage: UsageRecorder
  readonly verifier: GatewayAuthenticator
  readonly feed: Pick<Feed, 'now'>
}

export function usageRoutes({ usage, verifier, feed }: UsageRoutesDeps): FastifyPluginAsyncTypebox {
  return async (app) => {
    requireGateway(app, verifier)
    app.post(
      '/v1/usage',
      {
        bodyLimit: REPORT_BODY_LIMIT,
        schema: {
          tags: ['runtime'],
          operationId: 'reportUsage',
          summary: `Report when keys were last used at this gateway, up to ${MAX_USES} of them, where it answered from its own memory`,
          description: 'Keys that are not known, or are of an organization that the gateway does not serve, are passed over without a word. A time that is later than now counts as now.',
          security: [{ gateway: [] }],
          body: UsageBody,
          response: responses(
            { 202: answer('It will be written with the next that are', UsageTaken) },
            ...GATEWAY_ERRORS,
          ),
        },
      },
      async ({ body, gateway }, reply) => {
        const now = feed.now()
        const uses = body.uses.map(({ key_id, used_at }, place) => {
          const time = parseTimestamp(used_at)
          if (time === undefined) throw invalid(`body.uses.${place}.used_at`, 'format', 'must be a time of RFC 3339')
          return { id: parsePublicId('mecha', key_id)!, at: Math.min(time, now) }
        })
        for (const { id, at } of uses) usage.reported(id, at, gateway)
        return reply.code(202).header('cache-control', 'no-store').send({})
      },
    )
  }
}
