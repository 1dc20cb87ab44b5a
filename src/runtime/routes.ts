/** The runtime plane, which gateways and proxies ask about keys: all of its routes, by capability. */

import type { FastifyPluginAsyncTypebox } from '@fastify/type-provider-typebox'
import type { Settings } from '../config.js'
import { authzRoutes } from './authz/routes.js'
import { changesRoutes, type ChangesParts } from './changes/routes.js'
import type { Feed } from './changes/feed.js'
import { decorateCallers } from './gateway-auth/callers.js'
import { nonceRoutes, type NonceDeps } from './nonces/routes.js'
import type { OAuthParts } from './oauth/deps.js'
import { revokeTokenRoutes, type RevokeTokenParts } from './oauth/revoke.js'
import { oauthRoutes } from './oauth/routes.js'
import { revalidateRoutes, type RevalidateDeps } from './revalidate/routes.js'
import { usageRoutes, type UsageRoutesDeps } from './usage/routes.js'
import { verifyRoutes, type VerifyRoutesDeps } from './verify/routes.js'
import { createSender } from './verify/send.js'

export interface RuntimeDeps extends ChangesParts, Omit<VerifyRoutesDeps, 'send'>, UsageRoutesDeps, RevalidateDeps {
  readonly verifier: VerifyRoutesDeps['verifier']
  readonly feed: Pick<Feed, 'isFresh' | 'missedSince' | 'confirmedAt' | 'historyToken' | 'now'>
  readonly revocation: RevokeTokenParts
  readonly nonces: NonceDeps
  readonly oauth: OAuthParts
  readonly config: Settings
}

export function runtimePlane(deps: RuntimeDeps): FastifyPluginAsyncTypebox {
  return async (app) => {
    decorateCallers(app)
    const { verifier, oauth, config } = deps
    const send = createSender()
    await app.register(verifyRoutes({ ...deps, send }))
    await app.register(changesRoutes(deps))
    await app.register(revokeTokenRoutes(deps.revocation))
    await app.register(nonceRoutes(deps.nonces))
    await app.register(usageRoutes(deps))
    await app.register(revalidateRoutes(deps))
    await app.register(authzRoutes({ verifier, send, unavailable: config.AUTHZ_UNAVAILABLE }))
    await app.register(oauthRoutes(oauth, config.PUBLIC_URL))
  }
}
