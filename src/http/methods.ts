/** 405 with `Allow` (RFC 9110, section 15.5.6) for every path that exists, instead of a 404 that would deny it. */

import type { FastifyInstance, HTTPMethods } from 'fastify'
import { Problem } from '../errors.js'

const METHODS: HTTPMethods[] = ['GET', 'HEAD', 'POST', 'PUT', 'PATCH', 'DELETE']

/** Collects routes from here on; the function that it returns answers the methods that they do not take. */
export function collectMethods(app: FastifyInstance): () => void {
  const taken = new Map<string, Set<string>>()
  app.addHook('onRoute', ({ url, method }) => {
    const methods = taken.get(url) ?? new Set()
    for (const one of [method].flat()) methods.add(one)
    taken.set(url, methods)
  })
  return () => {
    for (const [url, methods] of [...taken]) {
      const others = METHODS.filter((method) => !methods.has(method))
      if (others.length === 0 || url === '*') continue
      const allow = METHODS.filter((method) => methods.has(method)).join(', ')
      app.route({
        method: others,
        url,
        schema: { hide: true },
        // Before a body is parsed: what is wrong is the method, whatever was sent along.
        onRequest: async () => {
          throw new Problem('method_not_allowed', `This path takes ${allow}.`, { headers: { allow } })
        },
        handler: () => undefined,
      })
    }
  }
}
