/** RFC 7009: whoever holds a key or a gateway credential can end it, be it its runtime or the finder of a leaked one. */

import { setTimeout as sleep } from 'node:timers/promises'
import type { FastifyPluginAsyncTypebox } from '@fastify/type-provider-typebox'
import type { Kysely } from 'kysely'
import type { Database } from '../../db/tables.js'
import { Problem } from '../../errors.js'
import { FORM, speakOAuth } from '../../http/oauth-errors.js'
import { limitAddresses } from '../../http/rate-limit.js'
import { answer, oauthResponses } from '../../http/schemas.js'
import { isJwt } from '../../credentials/token.js'
import type { OfOneHistory } from '../changes/one-history.js'
import { Revoked, RevokeTokenBody } from './schemas.js'
import { revokeByHolder, type Holder } from './store.js'
import type { Caller } from '../gateway-auth/callers.js'
import type { Verifier } from '../verify/verifier.js'

export interface RevokeTokenParts {
  readonly db: Kysely<Database>
  readonly verifier: Verifier
  readonly ofOneHistory: OfOneHistory
  /** Drops what is known of keys (UUIDs) from memory. */
  readonly invalidate: (ids: readonly string[]) => void
  /** Most calls of one address in a minute. */
  readonly perMinute: number
}

/**
 * When the answer comes, from the request on: what was never issued here is known for that in microseconds, what is good
 * takes argon2 and a commit, and nobody is to read one from the other.
 */
const ANSWER_AFTER_MS = 100
/** How often a key whose hash changes meanwhile is proved again. */
const ATTEMPTS = 10

export function revokeTokenRoutes(parts: RevokeTokenParts): FastifyPluginAsyncTypebox {
  return async (app) => {
    await speakOAuth(app)
    await limitAddresses(app, parts.perMinute)

    app.post(
      '/v1/revoke-token',
      {
        schema: {
          tags: ['runtime'],
          operationId: 'revokeToken',
          summary: 'End a key or a gateway credential by presenting it, for good: RFC 7009. It takes nothing else to do so',
          security: [],
          consumes: [FORM],
          body: RevokeTokenBody,
          response: oauthResponses(
            { 200: answer('The token is not good, whatever it was before', Revoked) },
            'invalid_request', 'unsupported_token_type', 'malformed_body', 'body_too_large', 'unsupported_media_type', 'rate_limited', 'database_unavailable', 'root_secret_missing', 'overloaded',
          ),
        },
      },
      async ({ body, id, ip }, reply) => {
        // Ending one JWT alone cannot be said to those that verify offline: its index in the status list is its key's. By its form
        // and nothing else: the answer says nothing of the token.
        if (isJwt(body.token)) throw new Problem('unsupported_token_type', 'A JWT ends with the key that it was exchanged for. Revoke the key, or wait: a JWT lives for minutes.')
        const answerAt = performance.now() + ANSWER_AFTER_MS
        await endHeld(parts, body.token, { requestId: id, address: ip }, reply)
        await sleep(Math.max(0, answerAt - performance.now()))
        return {}
      },
    )
  }
}

async function endHeld({ db, verifier, ofOneHistory, invalidate }: RevokeTokenParts, presented: string, holder: Holder, caller: Caller): Promise<void> {
  for (let attempt = 0; attempt < ATTEMPTS; attempt++) {
    const key = await verifier.provePresented(presented, caller)
    if (!key || key.revoked_at !== null) return
    const { isOver } = await ofOneHistory(() => revokeByHolder(db, key, holder))
    // Invalidate locally without waiting for the feed: what it was proved against is not what it is now.
    invalidate([key.id])
    if (isOver) return
  }
  throw new Problem('database_unavailable', 'The key is being changed. Try again in a moment.', { headers: { 'retry-after': '1' } })
}
