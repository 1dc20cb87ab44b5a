/** Listing keys and gateway credentials in the database, by pages. */

import type { Kysely } from 'kysely'
import type { Database } from '../../db/tables.js'
import type { CredentialKind } from '../../credentials/id.js'
import type { KeyStatus } from '../../credentials/status.js'
import { readClock } from '../database-clock.js'
import { crewsToList, type AccessFilter } from '../operators/access-filter.js'
import { isAccessible, isLiving, KEY_COLUMNS, selectKeys, type KeyRecord, type Keys } from './store.js'

/** What a listing is ordered by, the latest first. */
export type KeyOrder = 'created_at' | 'expires_at'

/** Where a page of a listing ended. */
export interface Cursor {
  readonly by: KeyOrder
  readonly at: Date
  readonly id: string
}

export interface ListFilter {
  readonly kind: CredentialKind
  readonly mecha?: string | undefined
  readonly status?: KeyStatus | undefined
  readonly limit: number
  readonly after?: Cursor | undefined
}

/**
 * Keys that have expired are in the order in which they did: whether a key has is a matter of the clock, and so no index knows the newest
 * of them. Of one Mecha no more than its limit are alive, so there the newest are found among the others.
 */
export function orderOfKeys({ status, mecha }: Pick<ListFilter, 'status' | 'mecha'>): KeyOrder {
  return status === 'expired' && mecha === undefined ? 'expires_at' : 'created_at'
}

/**
 * The latest first. A row's place, once it has one, never changes: pages neither skip nor repeat what was there before.
 *
 * Crew by crew, for an index has the keys of each in order, and PostgreSQL merges what is in order.
 */
export async function listKeys(db: Kysely<Database>, access: AccessFilter, filter: ListFilter): Promise<{ keys: KeyRecord[]; now: Date }> {
  const now = await readClock(db)
  const { kind, mecha, status, limit, after } = filter
  const by = after?.by ?? orderOfKeys(filter)
  const crews = crewsToList(access, mecha)
  if (crews?.length === 0) return { keys: [], now }
  const found = (crews ?? [undefined]).map((crew) =>
    db
      .selectFrom('keys').select(KEY_COLUMNS)
      .where(isAccessible({ orgId: access.orgId, crews: crew === undefined ? undefined : [crew] }, kind))
      .$if(mecha !== undefined, (query) => query.where('mecha', '=', mecha!))
      .$if(status !== undefined, (query) => query.where(hasStatus(status!, now)))
      .$if(after !== undefined, (query) => query.where((eb) => eb(eb.refTuple(by, 'id'), '<', eb.tuple(after!.at, after!.id))))
      .orderBy(by, 'desc').orderBy('id', 'desc').limit(limit))
    .map((ofOne) => db.selectFrom(ofOne.as('keys')).selectAll())
  const page = found.reduce((all, one) => all.unionAll(one)).orderBy(by, 'desc').orderBy('id', 'desc').limit(limit)
  // Under the name of the table, whose place it takes.
  const keys = await selectKeys(db.with('keys', () => page)).orderBy(by, 'desc').orderBy('id', 'desc').execute()
  return { keys, now }
}

/** `statusAt` of `credentials/status.ts`, in SQL that the indexes understand. Tests hold the two together. */
function hasStatus(status: KeyStatus, now: Date) {
  return (eb: Keys) => {
    if (status === 'revoked') return eb('revoked_at', 'is not', null)
    if (status === 'expired') return eb.and([eb('revoked_at', 'is', null), eb('expires_at', '<=', now)])
    return eb.and([isLiving(now)(eb), status === 'active' ? eb.ref('enabled') : eb.not('enabled')])
  }
}
