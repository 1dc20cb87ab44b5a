/** Pages of keys and of gateway credentials, and the cursors from one to the next. */

import { invalid } from '../../errors.js'
import type { CredentialKind } from '../../credentials/id.js'
import type { ControlDeps } from '../deps.js'
import type { AccessFilter } from '../operators/access-filter.js'
import { listKeys, orderOfKeys, type Cursor, type KeyOrder, type ListFilter } from './list-store.js'
import type { KeyRecord } from './store.js'

export interface PageQuery {
  readonly mecha?: string
  readonly status?: ListFilter['status']
  readonly limit?: number
  readonly cursor?: string
}

/** One page, and where the next one starts. One row more than asked for is read, to know whether there is a next one. */
export async function listPage({ db }: ControlDeps, access: AccessFilter, kind: CredentialKind, query: PageQuery) {
  const { mecha, status, limit = 50, cursor } = query
  const after = cursor === undefined ? undefined : decodeCursor(cursor)
  const order = orderOfKeys(query)
  // A cursor by creation time is taken with any filter: the previous release makes them for keys that have expired, too.
  if (cursor !== undefined && after?.by !== 'created_at' && after?.by !== order) throw invalid('query.cursor', 'format', 'must be the next_cursor of a page before')
  const { keys, now } = await listKeys(db, access, { kind, mecha, status, limit: limit + 1, after })
  const shown = keys.slice(0, limit)
  return { keys: shown, now, next_cursor: keys.length > limit ? encodeCursor(shown.at(-1)!, after?.by ?? order) : null }
}

/** A cursor as text: opaque to callers, and nothing in it that the page itself did not show. */
function encodeCursor(row: KeyRecord, by: KeyOrder): string {
  return Buffer.from(`${row[by]!.getTime().toString(36)}.${row.id}${SUFFIX[by]}`).toString('base64url')
}

/** The place that a cursor names, or `undefined` when it is no cursor of this service. */
function decodeCursor(cursor: string): Cursor | undefined {
  const match = /^([0-9a-z]{1,10})\.([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})(\.expired)?$/.exec(Buffer.from(cursor, 'base64url').toString())
  return match ? { by: match[3] ? 'expires_at' : 'created_at', at: new Date(parseInt(match[1]!, 36)), id: match[2]! } : undefined
}

const SUFFIX: Record<KeyOrder, string> = { created_at: '', expires_at: '.expired' }
