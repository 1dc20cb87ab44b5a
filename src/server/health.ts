/** Liveness and readiness. */

import { setTimeout as sleep } from 'node:timers/promises'
import type { FastifyBaseLogger, FastifyInstance } from 'fastify'
import { responses } from '../http/schemas.js'
import { Type } from '../http/type.js'

/** One thing that has to be right before traffic is welcome: resolves to what is wrong, or to nothing. */
export type ReadinessCheck = () => Promise<string | undefined>

export interface HealthDeps {
  readonly checks: Readonly<Record<string, ReadinessCheck>>
  readonly isDraining: () => boolean
  readonly onReadiness: (ready: boolean) => void
}

const Liveness = Type.Object({ alive: Type.Boolean() }, { title: 'Liveness' })
const Readiness = Type.Object(
  { ready: Type.Boolean(), checks: Type.Record(Type.String(), Type.String(), { title: 'Checks', description: '`ok`, or what is wrong' }) },
  { title: 'Readiness' },
)

export function registerHealth(app: FastifyInstance, { checks, isDraining, onReadiness }: HealthDeps): void {
  app.get(
    '/livez',
    {
      schema: {
        tags: ['ops'], operationId: 'livez', summary: 'Is the process alive? Asks nothing of the database', security: [],
        response: responses({ 200: said('It is', Liveness) }, 'headers_too_large'),
      },
    },
    async () => ({ alive: true }),
  )
  app.get(
    '/readyz',
    {
      schema: {
        tags: ['ops'], operationId: 'readyz', summary: 'May traffic come? Not while draining, nor without a database that takes writes', security: [],
        response: responses({ 200: said('It may', Readiness), 503: said('Not now', Readiness) }, 'headers_too_large'),
      },
    },
    async (_request, reply) => {
      const entries = Object.entries(checks).map(async ([name, check]) => [name, (await check()) ?? 'ok'] as const)
      const results = { ...Object.fromEntries(await Promise.all(entries)), draining: isDraining() ? 'draining' : 'ok' }
      const ready = Object.values(results).every((result) => result === 'ok')
      onReadiness(ready)
      return reply.code(ready ? 200 : 503).header('cache-control', 'no-store').send({ ready, checks: results })
    },
  )
}

/** How soon a failed check is run again. */
const ASK_AGAIN_MS = 10_000
/** Longest that a probe waits for a check that is run so rarely. */
const PROBE_WAITS_MS = 500

/**
 * Wraps a check of something that does not become wrong by itself: once it has passed it is not run again, and until then it is run
 * rarely. When it throws, its last result stands.
 */
export function untilRight(check: ReadinessCheck, log: FastifyBaseLogger): ReadinessCheck {
  let trouble: string | undefined
  let isRight = false
  let askedAt = -Infinity
  async function ask(): Promise<void> {
    const found = await check()
    isRight = found === undefined
    if (found !== undefined && found !== trouble) log.error(found)
    trouble = found
  }
  return async () => {
    if (isRight || performance.now() - askedAt < ASK_AGAIN_MS) return trouble
    askedAt = performance.now()
    await Promise.race([ask().catch(() => {}), sleep(PROBE_WAITS_MS, undefined, { ref: false })])
    return trouble
  }
}

function said<T>(description: string, schema: T) {
  return { description, content: { 'application/json': { schema } } }
}
