/** Who a key is, as a proxy hands it on: headers, all of them always there. */

import { parseHandle } from '../key/handle.js'
import { publicId } from '../key/id.js'

/** What a proxy copies into the request. Where one were missing, a client's own header of that name could pass. */
export interface Identity {
  /** What is one Mecha's and nobody else's, as `sub` of a token: its handle. Its name alone is of a Mecha in each crew. */
  readonly 'x-mecha-id': string
  /** `name^crew`. */
  readonly 'x-mecha-handle': string
  readonly 'x-mecha-crew': string
  readonly 'x-mecha-org': string
  /** Separated by spaces. */
  readonly 'x-mecha-scopes': string
  readonly 'x-mecha-key-id': string
}

/** The headers of an answer that lets nobody through. */
export const NOBODY: Identity = { 'x-mecha-id': '', 'x-mecha-handle': '', 'x-mecha-crew': '', 'x-mecha-org': '', 'x-mecha-scopes': '', 'x-mecha-key-id': '' }

/** As scopes and organizations are when they come through the API: no space, so that one scope cannot be read as two. */
const WORD = /^[\x21-\x7e]+$/

/**
 * The headers of a Mecha key.
 *
 * @throws Error for a row that was written by hand and holds what no header may
 */
export function identityOf({ id, mecha, org_id, scopes }: { id: string; mecha: string | null; org_id: string | null; scopes: readonly string[] }): Identity {
  const { handle, crew } = parseHandle(mecha!)
  for (const word of [handle, org_id!, ...scopes]) if (!WORD.test(word)) throw new Error('a key holds what cannot be put into a header')
  return { 'x-mecha-id': handle, 'x-mecha-handle': handle, 'x-mecha-crew': crew, 'x-mecha-org': org_id!, 'x-mecha-scopes': scopes.join(' '), 'x-mecha-key-id': publicId('mecha', id) }
}
