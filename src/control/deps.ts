/** What the control plane's services are given. */

import type { Kysely, Transaction } from 'kysely'
import type { Hasher } from '../credentials/hash-queue.js'
import type { Operator } from './operators/authenticate.js'
import type { Settings } from '../config.js'
import type { Database, Metadata } from '../db/tables.js'
import type { CredentialKind } from '../credentials/id.js'
import type { Roots } from '../credentials/roots.js'
import { makeToken } from '../credentials/token.js'
import { insertEvents, type Secret } from './store.js'

export interface ControlParts {
  readonly db: Kysely<Database>
  readonly roots: Roots
  readonly config: Settings
  readonly hasher: Hasher
  /** Told of each receipt that an answer carries. */
  readonly onReceipt?: (seconds: number, isComplete: boolean) => void
}

/** Who does something, and by which request: what every event says. */
export interface Author {
  readonly actor: string
  readonly requestId: string
  readonly address: string
}

/** An operator's request. */
export interface Caller extends Author, Pick<Operator, 'orgId' | 'crews'> {}

/** A request to the gateways of an organization, or to those of all of them (`null`: from the command line). */
export interface GatewayCaller extends Author {
  readonly orgId: string | null
  readonly crews: undefined
}

/** A new secret for an id: the plaintext to reveal, and what is stored in its place. */
export interface Minted extends Secret {
  readonly id: string
  readonly plaintext: string
}

/** Makes and hashes a secret. It takes argon2's time, so it is done before a transaction and never within one. */
export async function mint(parts: ControlParts, kind: CredentialKind, id: string, subject: string): Promise<Minted> {
  const [root] = parts.roots
  const { KEY_PREFIX, GATEWAY_PREFIX } = parts.config
  const token = makeToken(kind === 'mecha' ? KEY_PREFIX : GATEWAY_PREFIX, id, root)
  const hashed = await parts.hasher.hash({ id, subject, secret: token.secret }, root)
  return { id, plaintext: token.text, tag_root: root.id, ...hashed }
}

export const EVENT_TYPES = [
  'key.issued', 'key.updated', 'key.rotated', 'key.revoked', 'key.secret_replaced', 'gateway.created', 'gateway.revoked',
] as const

interface Happening {
  readonly type: (typeof EVENT_TYPES)[number]
  readonly keyId: string
  readonly mecha: string | null
  readonly data?: Metadata
}

/** Writes what happened to the audit trail. The last act of a transaction. */
export async function audit(trx: Transaction<Database>, caller: Author & { readonly orgId: string | null }, at: Date, happenings: Happening[]): Promise<void> {
  const { orgId, actor, requestId, address } = caller
  const events = happenings.map(({ type, keyId, mecha, data = {} }) => ({
    at, type, key_id: keyId, kind: type.startsWith('key.') ? ('mecha' as const) : ('gateway' as const),
    mecha, actor, request_id: requestId, address, data,
  }))
  await insertEvents(trx, orgId, events)
}
