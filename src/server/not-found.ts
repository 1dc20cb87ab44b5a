/** Answers requests that no route serves: 405 with `Allow` (RFC 9110, section 15.5.6) where the path takes other methods, 404 where it takes none. */

import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify'
import { Problem } from '../errors.js'
import { answerProblem } from '../http/problems.js'

/**
 * Must be called before the routes are registered.
 *
 * @param onNotFound called for a request that no route is there for, before it is answered
 */
export function registerNotFound(app: FastifyInstance, onNotFound: (reply: FastifyReply) => void): void {
  const methodsAt = collectMethods(app)

  function answerNotFound(request: FastifyRequest, reply: FastifyReply): void {
    onNotFound(reply)
    const methods = methodsAt(request.url)
    const allow = methods.join(', ')
    // If the path takes the method, its route was found and answered 404 itself.
    const isMethodWrong = methods.length > 0 && !methods.includes(request.method)
    answerProblem(reply, isMethodWrong
      ? new Problem('method_not_allowed', `This path takes ${allow}.`, { headers: { allow } })
      : new Problem('route_not_found', 'Nothing is served at this path.'))
  }

  // In a scope of its own, whose hook no other request passes.
  app.register(async (scope) => {
    // Before a body is parsed: what is wrong is the path or the method, whatever was sent along.
    scope.addHook('onRequest', (request, reply, _done) => answerNotFound(request, reply))
    scope.setNotFoundHandler(answerNotFound)
  })
}

/**
 * Collects what routes take that are registered on `app` from here on. The function that it returns says which methods the path
 * of a target takes: none where nothing is served.
 */
export function collectMethods(app: FastifyInstance): (target: string) => string[] {
  const methodsOf = new Map<string, Set<string>>()
  app.addHook('onRoute', ({ url, method }) => {
    // `*` is what the CORS plugin takes every preflight with.
    if (url === '*') return
    const methods = methodsOf.get(url) ?? new Set()
    for (const one of [method].flat()) methods.add(one)
    // Fastify tells of `/docs/` beside `/docs` only where it tells of its HEAD.
    if (methods.has('HEAD')) methods.add('GET')
    methodsOf.set(url, methods)
  })
  let routes: { readonly pattern: RegExp; readonly methods: Set<string> }[] | undefined
  return (target) => {
    routes ??= [...methodsOf].map(([url, methods]) => ({ pattern: patternOf(url), methods }))
    const path = /^(?:https?:\/\/[^/?#]*)?([^?#]*)/.exec(target)![1]!
    const methods = routes.filter(({ pattern }) => pattern.test(path)).flatMap((route) => [...route.methods])
    return [...new Set(methods)].sort()
  }
}

/** Matches the paths of a route: `/v1/keys/:id`, `/docs/static/*`. */
function patternOf(url: string): RegExp {
  const source = url.replace(/[.^$+?()[\]{}|\\]/g, '\\$&').replace(/:\w+/g, '[^/]+').replace('*', '.*')
  return new RegExp(`^${source}$`)
}
