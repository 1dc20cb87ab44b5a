/** The contract of `/v1/authz`. Requests are answered before they would be validated, because proxies send whatever a client sent them. */

import { emptyAnswer, responses } from '../../http/schemas.js'
import { Type } from '../../http/type.js'

export const AUTHZ_SCHEMA = {
  tags: ['runtime'],
  operationId: 'authorize',
  summary: 'May this request pass? For proxies',
  description: [
    'Takes any method and any path below `/v1/authz`, as proxies send them, and reads no body. The key is in `X-Mecha-Key`, or is the bearer token of `Authorization`.',
    'Answers nothing but 200, 401 and 403 (and 503, where `AUTHZ_UNAVAILABLE=503` is set), and has every `X-Mecha-…` header in every answer: empty, unless it is 200. A 401 is of the key alone.',
    'On the address of `AUTHZ_LISTEN` no gateway credential is needed.',
  ].join('\n\n'),
  security: [{ proxy: [], mechaKey: [] }],
  querystring: Type.Object({
    scope: Type.Optional(Type.String({ description: 'Scopes that the key must have, all of them: separated by spaces, or in parameters of their own', examples: ['orders:read'] })),
    mecha: Type.Optional(Type.String({ description: 'The Mecha that the key must be of', examples: ['sales^acmecorp'] })),
    request: Type.Optional(Type.String({ description: 'Whatever stands from here on is not read: for proxies that append the path and the query that they were asked for' })),
  }),
  response: responses(
    {
      200: emptyAnswer('It may', {
        'X-Mecha-Id': "What is this Mecha's alone: its handle",
        'X-Mecha-Handle': '`name^crew`',
        'X-Mecha-Crew': 'The crew',
        'X-Mecha-Org': 'The organization',
        'X-Mecha-Scopes': 'All scopes of the key, separated by spaces; may be empty',
        'X-Mecha-Key-Id': 'Id of the key',
      }),
    },
    'unauthenticated', 'insufficient_scope', 'mecha_mismatch', 'gateway_unauthenticated', 'database_unavailable', 'feed_stale', 'database_restored', 'root_secret_missing', 'overloaded',
  ),
}
