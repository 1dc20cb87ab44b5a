/** The tables as Kysely sees them. `migrations/` is what makes them. */

import type { ColumnType, Generated, Insertable, Selectable } from 'kysely'
import type { CredentialKind } from '../credentials/id.js'
import type { SigningAlgorithm } from '../credentials/signing-key.js'

export type Json = null | boolean | number | string | Json[] | { [key: string]: Json }
export type Metadata = { [key: string]: Json }

/** Read as parsed JSON, written as its text. */
type JsonColumn<T> = ColumnType<T, string, string>

export interface MechasTable {
  handle: string
  org_id: string
  created_at: Generated<Date>
}

/** Who a crew is reserved for. */
export interface CrewsTable {
  crew: string
  org_id: string
  reserved_at: Generated<Date>
}

export interface KeysTable {
  id: string
  kind: CredentialKind
  org_id: string | null
  mecha: string | null
  crew: ColumnType<string | null, never, never>
  name: string | null
  scopes: string[]
  metadata: JsonColumn<Metadata>
  hash: string
  tag_root: string
  pepper_root: string
  enabled: Generated<boolean>
  created_at: Date
  created_by: string
  expires_at: Date | null
  revoked_at: ColumnType<Date | null, never, Date>
  revoked_by: ColumnType<string | null, never, string>
  revoke_reason: ColumnType<string | null, never, string | null>
  rotated_from: string | null
  rotated_to: ColumnType<string | null, never, string>
}

export interface KeyUsageTable {
  key_id: string
  first_used_at: Date
  last_used_at: Date
  last_used_by: Generated<string | null>
}

export interface KeyRefusalsTable {
  key_id: string
  last_refused_at: Date
  last_refused_code: 'revoked' | 'expired' | 'disabled'
}

export interface IdempotencyKeysTable {
  digest: Buffer
  request_digest: Buffer
  key_id: string
  expires_at: Date
}

export interface EventsTable {
  /** A bigint, which `pg` gives as text. */
  position: ColumnType<string, never, never>
  at: Date
  type: string
  org_id: string | null
  /** NULL for what happens to a signing key, to a crew, to an organization, or to the database. */
  key_id: string | null
  kind: CredentialKind | 'signing_key' | 'crew' | 'organization' | 'database'
  mecha: string | null
  actor: string
  request_id: string
  address: string
  data: JsonColumn<Metadata>
}

export interface SigningKeysTable {
  kid: string
  alg: SigningAlgorithm
  sealed: Buffer
  root: string
  created_at: Date
  created_by: string
  signs_from: Date
}

export interface TokenStatusTable {
  idx: number
  key_id: string | null
  /** When its key was erased; `null`: it was not. */
  key_erased_at: Generated<Date | null>
  /** The transaction that gave it to its key. */
  xid: Generated<string | null>
}

export interface NoncesTable {
  key_id: string
  digest: Buffer
  expires_at: Date
}

export interface Database {
  mechas: MechasTable
  crews: CrewsTable
  keys: KeysTable
  key_usage: KeyUsageTable
  key_refusals: KeyRefusalsTable
  idempotency_keys: IdempotencyKeysTable
  events: EventsTable
  signing_keys: SigningKeysTable
  token_status: TokenStatusTable
  nonces: NoncesTable
}

export type KeyRow = Selectable<KeysTable>
export type NewKeyRow = Insertable<KeysTable>
export type EventRow = Selectable<EventsTable>
