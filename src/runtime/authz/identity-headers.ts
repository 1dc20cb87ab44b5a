/** Who a key is, as a proxy hands it on: headers, all of them always there. */

import { parseHandle } from '../../credentials/handle.js'
import { publicId } from '../../credentials/id.js'
import type { Headers } from '../verify/send.js'

/**
 * What a proxy copies into the request. Where one of them were missing, a client's own header of that name could pass.
 *
 * `x-mecha-id` is what is one Mecha's and nobody else's, as `sub` is in a token: its handle. A name alone can be had
 * in every crew, and an application that kept accounts by it would take one Mecha for another.
 */
const NAMES = ['x-mecha-id', 'x-mecha-handle', 'x-mecha-crew', 'x-mecha-org', 'x-mecha-scopes', 'x-mecha-key-id'] as const

/** The headers of an answer that lets nobody through. */
export const NOBODY: Readonly<Record<string, string>> = Object.fromEntries(NAMES.map((name) => [name, '']))

/** As scopes and organizations are when they come through the API. With a space in it, one scope would be read as two. */
const WORD = /^[\x21-\x7e]+$/

/**
 * The headers of a Mecha key.
 *
 * @throws Error for a row that was written by hand and holds what no header may
 */
export function identityOf({ id, mecha, org_id, scopes }: { id: string; mecha: string | null; org_id: string | null; scopes: readonly string[] }): Headers {
  const { handle, crew } = parseHandle(mecha!)
  for (const word of [handle, org_id!, ...scopes]) if (!WORD.test(word)) throw new Error('a key holds what cannot be put into a header')
  const values = [handle, handle, crew, org_id!, scopes.join(' '), publicId('mecha', id)]
  return NAMES.flatMap((name, i) => [name, values[i]!])
}
