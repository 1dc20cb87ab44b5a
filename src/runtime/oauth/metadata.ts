/** What OAuth clients find out by themselves (RFC 8414). */

import type { Static } from 'typebox'
import { SIGNING_ALGORITHMS } from '../../credentials/signing-key.js'
import { TOKEN_EXCHANGE, type Metadata } from './schemas.js'

export const METADATA_PATH = '/.well-known/oauth-authorization-server'
export const JWKS_PATH = '/.well-known/jwks.json'

/** The metadata of an issuer. */
export function metadataOf(issuer: string): Static<typeof Metadata> {
  return {
    issuer,
    token_endpoint: `${issuer}/v1/token`,
    token_endpoint_auth_methods_supported: ['none'],
    grant_types_supported: [TOKEN_EXCHANGE],
    introspection_endpoint: `${issuer}/v1/introspect`,
    // A bearer is named by its token type: section 2 allows either registry's names.
    introspection_endpoint_auth_methods_supported: ['client_secret_basic', 'Bearer'],
    introspection_signing_alg_values_supported: [...SIGNING_ALGORITHMS],
    revocation_endpoint: `${issuer}/v1/revoke-token`,
    revocation_endpoint_auth_methods_supported: ['none'],
    jwks_uri: issuer + JWKS_PATH,
    // Required (section 2) and not to be empty (section 3.2), though there is no authorization endpoint: it answers with nothing.
    response_types_supported: ['none'],
  }
}

/**
 * Where the metadata of an issuer are asked for: the well-known part comes before the issuer's path (section 3.1). A
 * proxy that takes that path away asks for the plain one.
 */
export function metadataPaths(publicUrl: string | undefined): string[] {
  const path = publicUrl === undefined ? '' : new URL(publicUrl).pathname.replace(/\/$/, '')
  return path === '' ? [METADATA_PATH] : [METADATA_PATH, METADATA_PATH + path]
}
