/** Lets browser frontends of other origins call the routes of a scope, and no others. */

import cors, { type FastifyCorsOptions } from '@fastify/cors'
import type { FastifyInstance, FastifyRequest } from 'fastify'
import { collectMethods } from './not-found.js'

/** What a frontend may read of an answer, beside the headers that browsers show anyway. */
const EXPOSED_HEADERS = ['ETag', 'Location', 'Preference-Applied', 'Retry-After', 'WWW-Authenticate', 'X-Request-Id']
/** Seconds for which a browser need not ask again. Chromium keeps no answer for longer. */
const MAX_AGE = 7200

/** Must be called before the routes of `scope` are registered. */
export async function allowOrigins(scope: FastifyInstance, origins: string[]): Promise<void> {
  const methodsAt = collectMethods(scope)

  function optionsFor({ method, url, headers }: FastifyRequest): FastifyCorsOptions {
    const allowed = { origin: origins, exposedHeaders: EXPOSED_HEADERS, maxAge: MAX_AGE }
    if (method !== 'OPTIONS') return allowed
    // The plugin takes `OPTIONS` of every path. What is no preflight, or of a path elsewhere, is answered as without it.
    const isPreflight = headers.origin !== undefined && headers['access-control-request-method'] !== undefined
    const methods = isPreflight ? methodsAt(url) : []
    return methods.length > 0 ? { ...allowed, methods } : { origin: false }
  }

  await scope.register(cors, { delegator: async (request: FastifyRequest) => optionsFor(request) })
}

/**
 * What an answer says to browsers that no route gives: at a path or with a method that is not there, and to a path that is none. With
 * these headers a frontend can read the problem instead of being told of a failed network. A preflight gets none of them.
 *
 * @param origins that may read it; none where it is `undefined`
 */
export function outsideOfRoutes(origins: string[] | undefined): (request: FastifyRequest) => Record<string, string> {
  return ({ method, headers: { origin } }) => {
    if (!origins || method === 'OPTIONS') return {}
    if (origin === undefined || !origins.includes(origin)) return { vary: 'Origin' }
    return { 'vary': 'Origin', 'access-control-allow-origin': origin, 'access-control-expose-headers': EXPOSED_HEADERS.join(', ') }
  }
}
