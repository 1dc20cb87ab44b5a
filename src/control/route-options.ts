/** What the routes of the control plane have in common. */

import type { ErrorCode } from '../errors.js'
import { parsePublicId, type CredentialKind } from '../credentials/id.js'

/** The problems of every route that reads. */
export const READ_ERRORS = ['invalid_request', 'contains_secret', 'unauthenticated', 'insufficient_scope', 'database_unavailable', 'issuer_unavailable', 'overloaded'] satisfies ErrorCode[]
/** The problems of every route that writes, which takes a body. */
export const WRITE_ERRORS = [...READ_ERRORS, 'malformed_body', 'body_too_large', 'unsupported_media_type'] satisfies ErrorCode[]

export function documented(operationId: string, summary: string) {
  return { tags: ['control'], operationId, summary }
}

/** The id in the database of one that the route's schema has checked. */
export function uuidOf(kind: CredentialKind, id: string): string {
  return parsePublicId(kind, id)!
}
