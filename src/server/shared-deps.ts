/** What is made once for the whole service, and handed to both planes and the authz listener. */

import type { FastifyInstance } from 'fastify'
import type { Logger } from 'pino'
import type { Hasher } from '../credentials/hash-queue.js'
import type { Roots } from '../credentials/roots.js'
import type { Metrics } from '../http/metrics.js'
import type { Compilers } from '../http/validation.js'
import type { Tracing } from '../tracing/tracing.js'
import type { Checks } from './checks.js'
import type { DatabasePools } from './database-pools.js'

export interface SharedDeps {
  readonly app: FastifyInstance
  readonly logger: Logger
  readonly compilers: Compilers
  readonly roots: Roots
  readonly hasher: Hasher
  readonly metrics: Metrics
  readonly tracing: Tracing | undefined
  readonly checks: Checks
  readonly pools: DatabasePools
  readonly isDraining: () => boolean
}
