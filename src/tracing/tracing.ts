/**
 * What the service tells of its work while traces are on. Nothing here is loaded from OpenTelemetry: without
 * `OTEL_EXPORTER_OTLP_ENDPOINT` there is no {@link Tracing}, and nothing that would have to ask whether there is one.
 */

import type { FastifyInstance } from 'fastify'
import type { Plane } from '../db/logins.js'
import type { Statement } from '../db/pool.js'

declare module 'fastify' {
  interface FastifyContextConfig {
    /** What a route belongs to. Known while traces are on. */
    plane?: Plane
  }
}

/** Of bounded kinds, as in metrics, and words of our own: never a key, a token, a handle, or anything else that a caller wrote. */
export type Attributes = Readonly<Record<string, string | number | boolean>>

/** Something that is over. */
export interface Work {
  readonly name: string
  readonly seconds: number
  readonly attributes?: Attributes
  /** Whether it was done by another program, which was waited for. */
  readonly isRemote?: boolean
  readonly isFailure?: boolean
}

export interface Tracing {
  /** Begins a span with each request of a server. Must be called before other hooks, so that they are part of it. */
  traceRequests(app: FastifyInstance): void
  /** Tells of something that the request under way has just done; of nothing where none is under way. */
  did(work: Work): void
  /** As {@link did}, of something that begins now: for what ends where it is no longer known for which request it was. */
  begin(): ((work: Work) => void) | undefined
  /** Tells of something that was done for no request. */
  didAlone(work: Work): void
  /** What a log line says of the request under way. */
  logFields(): object
  /** Sends what has not been sent, for as long as this at most. */
  stop(withinMs: number): Promise<void>
}

export const SAMPLERS = ['always_on', 'always_off', 'traceidratio', 'parentbased_always_on', 'parentbased_always_off', 'parentbased_traceidratio'] as const
export type SamplerName = (typeof SAMPLERS)[number]

/** Says what routes belong to that are registered on `app` from here on. */
export function markPlane(app: FastifyInstance, plane: Plane): void {
  app.addHook('onRoute', (route) => {
    route.config = { ...route.config, plane }
  })
}

/** A statement, without its text: its first word says enough. */
export function statementWork({ query, queryDurationMillis, level }: Statement, plane: Plane): Work {
  const operation = (/^\s*(\w+)/.exec(query.sql)?.[1] ?? 'statement').toUpperCase()
  const attributes = { 'db.system.name': 'postgresql', 'db.operation.name': operation, 'mecha_keys.plane': plane }
  return { name: operation, seconds: queryDurationMillis / 1000, attributes, isRemote: true, isFailure: level === 'error' }
}

/** Tells of each computation of argon2, by the request that asked for it. */
export function hashingObserver(tracing: Tracing) {
  return (operation: 'hash' | 'verify') => {
    const end = tracing.begin()
    return end && ((waited: number, seconds: number) => end({ name: `argon2 ${operation}`, seconds, attributes: { 'mecha_keys.queue_wait_ms': Math.round(waited * 1e6) / 1000 } }))
  }
}
