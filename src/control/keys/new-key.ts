/** What issuing and rotating have in common: what is stored of a new key, and why one may not be made. */

import type { Settings } from '../../config.js'
import { notFound, Problem } from '../../errors.js'
import type { Metadata } from '../../db/tables.js'
import type { Caller, ControlDeps } from '../deps.js'
import { endOfNew, type Term } from './expiry.js'
import type { Issued } from './issue-store.js'
import type { Minted } from './mint.js'
import type { KeyRecord } from './store.js'

/** What a key is called, may be used for and is described by. */
export interface KeyDetails {
  readonly name?: string | undefined
  readonly scopes?: string[] | undefined
  readonly metadata?: Metadata | undefined
}

/** A key, and its plaintext: the one time that it is known. */
export interface Revealed {
  readonly key: KeyRecord
  readonly plaintext: string
  readonly now: Date
}

/** How often a key is tried to be made while other requests change what it depends on. */
export const ATTEMPTS = 3

/** The problem after the last attempt. */
export function contended(): Problem {
  return new Problem('database_unavailable', 'Others change the same at this moment. Try again.', { headers: { 'retry-after': '1' } })
}

export function newKey({ config }: ControlDeps, { orgId, actor, requestId, address }: Caller, mecha: string, { id, hash, tag_root, pepper_root }: Minted, { name, scopes, metadata }: KeyDetails, { endsAt, lifeSeconds }: Term) {
  return {
    key_id: id, key_hash: hash, key_tag_root: tag_root, key_pepper_root: pepper_root, of_org: orgId, of_mecha: mecha,
    key_name: name ?? null, key_scopes: scopes ?? [], key_metadata: metadata ?? {},
    ends_at: endsAt, life_seconds: lifeSeconds, longest_seconds: config.KEY_MAX_TTL ?? null, actor, request_id: requestId, address,
  }
}

export function reveal(key: KeyRecord, { plaintext }: Minted): Revealed {
  return { key, plaintext, now: key.created_at }
}

/** Why the database made no key. What an end breaks of the policy, `endOfNew` throws by the clock that the database had. */
export function refusalOf(issued: Exclude<Issued, { readonly key: KeyRecord } | { readonly before: unknown }>, term: Term, config: Settings, limit: number): Error {
  if ('refused' in issued) return issued.refused === 'limit' ? limitReached(limit) : notFound()
  endOfNew(term, issued.endRefusedAt, config)
  return new Error('the database refuses an end that the policy allows')
}

function limitReached(limit: number): Problem {
  return new Problem('key_limit_reached', `The Mecha has ${limit} keys that are neither revoked nor expired, and may have no more. Revoke one first.`)
}
