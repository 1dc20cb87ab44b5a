/** What the services of the control plane are given: what they depend on, and who calls. */

import type { FastifyRequest } from 'fastify'
import type { Kysely } from 'kysely'
import type { Hasher } from '../credentials/hash-queue.js'
import type { Operator } from './operators/authenticate.js'
import type { Settings } from '../config.js'
import type { Database } from '../db/tables.js'
import type { Roots } from '../credentials/roots.js'

export interface ControlDeps {
  readonly db: Kysely<Database>
  readonly roots: Roots
  readonly config: Settings
  readonly hasher: Hasher
  /** Called with each receipt that an answer carries. */
  readonly onReceipt?: (seconds: number, isComplete: boolean) => void
}

/** Who does something, and by which request: what every audit event says. */
export interface Author {
  readonly actor: string
  readonly requestId: string
  readonly address: string
}

/** An operator's request. */
export interface Caller extends Author, Pick<Operator, 'orgId' | 'crews'> {}

/** A request about the gateways of an organization, or about those that serve every organization (`null`: from the command line). */
export interface GatewayCaller extends Author {
  readonly orgId: string | null
  readonly crews: undefined
}

export function callerOf({ operator, id, ip }: FastifyRequest): Caller {
  const { actor, orgId, crews } = operator
  return { actor, orgId, crews, requestId: id, address: ip }
}
