import { Type } from '../../http/type.js'

export const TOKEN_EXCHANGE = 'urn:ietf:params:oauth:grant-type:token-exchange'
export const ACCESS_TOKEN = 'urn:ietf:params:oauth:token-type:access_token'
export const JWT = 'urn:ietf:params:oauth:token-type:jwt'
/** RFC 9068, and RFC 9701. */
export const ACCESS_TOKEN_TYP = 'at+jwt'
export const INTROSPECTION_TYP = 'token-introspection+jwt'

const EXAMPLE_KEY = 'mecha_01jd9p5v3fe8rr2k7m4q9wx0zt_' + '0'.repeat(60)
const oneOrMore = (description: string) => Type.Optional(Type.Union([Type.String(), Type.Array(Type.String())], { description }))

// Parameters that are not known are passed over (RFC 6749, section 3.2), so these take any.
export const IntrospectBody = Type.Object(
  {
    token: Type.String({ 'x-secret': true, minLength: 1, 'x-rule': 'must not be empty', description: 'The key, or the JWT that it was exchanged for' }),
    token_type_hint: Type.Optional(Type.String({ description: 'Is taken, and makes no difference' })),
  },
  { title: 'IntrospectBody', examples: [{ token: EXAMPLE_KEY }] },
)

export const TokenBody = Type.Object(
  {
    grant_type: Type.String({ description: `\`${TOKEN_EXCHANGE}\`` }),
    subject_token: Type.Optional(Type.String({ 'x-secret': true, description: 'The Mecha key. Required' })),
    subject_token_type: Type.Optional(Type.String({ description: `\`${ACCESS_TOKEN}\`. Required` })),
    requested_token_type: Type.Optional(Type.String({ description: `\`${ACCESS_TOKEN}\`, or \`${JWT}\`, which makes no difference but in the answer` })),
    scope: Type.Optional(Type.String({ description: 'Scopes of the key that the JWT is to have, with spaces between them; all of them without it' })),
    audience: oneOrMore('Who the JWT is for: `aud`. The issuer without it and without `resource`'),
    resource: oneOrMore('The same as an absolute URI (RFC 8707)'),
    actor_token: Type.Optional(Type.String({ 'x-secret': true, description: 'Is refused' })),
  },
  {
    title: 'TokenBody',
    examples: [{ grant_type: TOKEN_EXCHANGE, subject_token: EXAMPLE_KEY, subject_token_type: ACCESS_TOKEN, scope: 'orders:read', audience: 'https://edge.example.com' }],
  },
)

export const TokenAnswer = Type.Object(
  {
    access_token: Type.String({ 'x-secret': true, description: 'The JWT (RFC 9068)' }),
    issued_token_type: Type.String({ description: 'As it was asked for', examples: [ACCESS_TOKEN] }),
    token_type: Type.Literal('Bearer'),
    expires_in: Type.Integer({ description: 'Seconds' }),
    scope: Type.Optional(Type.String({ description: 'The scopes of the JWT; not there when it has none' })),
  },
  { title: 'TokenAnswer' },
)

export const ActiveToken = Type.Object(
  {
    active: Type.Literal(true),
    sub: Type.String({ description: 'The Mecha: `name^crew`', examples: ['sales^acmecorp'] }),
    client_id: Type.String({ description: 'The same: a Mecha is its own client' }),
    username: Type.String({ description: 'The same' }),
    crew: Type.String({ description: 'Its crew' }),
    org_id: Type.String({ description: 'The organization' }),
    scope: Type.Optional(Type.String({ description: 'Scopes, with spaces between them; not there when there are none' })),
    token_type: Type.Literal('Bearer'),
    exp: Type.Optional(Type.Integer({ description: 'When it ends, in seconds since 1970; not there when it does not' })),
    iat: Type.Integer({ description: 'When it was issued' }),
    iss: Type.String({ description: 'The issuer' }),
    jti: Type.String({ description: 'The id of the key, or of the JWT' }),
    aud: Type.Optional(Type.Union([Type.String(), Type.Array(Type.String())], { description: 'Who a JWT is for' })),
    key_id: Type.String({ description: 'The id of the key, also of the one that a JWT was exchanged for', examples: ['key_01jd9p5v3fe8rr2k7m4q9wx0zt'] }),
  },
  { title: 'ActiveToken' },
)
export const InactiveToken = Type.Object({ active: Type.Literal(false) }, { title: 'InactiveToken' })
export const Introspection = Type.Union([ActiveToken, InactiveToken], { title: 'Introspection' })

export const Jwks = Type.Object(
  {
    keys: Type.Array(
      Type.Object({
        kty: Type.String(), crv: Type.String(), x: Type.String(), y: Type.Optional(Type.String()),
        kid: Type.String(), alg: Type.String(), use: Type.String(),
      }, { title: 'Jwk' }),
    ),
  },
  { title: 'Jwks', description: 'Public keys (RFC 7517): all that gateways need to verify what is alive' },
)

const names = () => Type.Array(Type.String())
export const Metadata = Type.Object(
  {
    issuer: Type.String(),
    token_endpoint: Type.String(),
    token_endpoint_auth_methods_supported: names(),
    grant_types_supported: names(),
    introspection_endpoint: Type.String(),
    introspection_endpoint_auth_methods_supported: names(),
    introspection_signing_alg_values_supported: names(),
    revocation_endpoint: Type.String(),
    revocation_endpoint_auth_methods_supported: names(),
    jwks_uri: Type.String(),
    response_types_supported: names(),
  },
  { title: 'AuthorizationServerMetadata' },
)

export const RevokeTokenBody = Type.Object(
  {
    token: Type.String({ 'x-secret': true, description: 'The key or the gateway credential' }),
    token_type_hint: Type.Optional(Type.String({ description: 'Not needed, and not looked at' })),
  },
  // What RFC 6749 does not name is ignored, not refused: OAuth clients send their own id along.
  { title: 'RevokeTokenBody', additionalProperties: true, examples: [{ token: EXAMPLE_KEY }] },
)

export const Revoked = Type.Object({}, { title: 'Revoked', description: 'Nothing: whatever the token was, it is not good' })
