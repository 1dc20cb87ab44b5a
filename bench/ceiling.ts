/**
 * The ceiling: bare Fastify routes with the service's own request and response schemas and canned answers. What it
 * does not reach, no service on the same framework does. Prints its address and serves until it is killed.
 */

import Fastify from 'fastify'
import { EventSchema, GatewaySchema, IdempotencyHeaders, IssueBody, KeyPage, KeySchema, ListQuery, RevealedKey } from '../src/control/schemas.js'
import { answer } from '../src/http/schemas.js'
import { schemaCompiler } from '../src/http/validation.js'
import { VerifyAnswer, VerifyBody } from '../src/runtime/schemas.js'

const id = 'key_01jd9p5v3fe8rr2k7m4q9wx0zt'
const time = '2030-01-31T12:00:00.000Z'
const key = {
  id, mecha: 'sales^acmecorp', org_id: 'acmecorp', name: null, status: 'active', scopes: [], metadata: {}, created_at: time, created_by: 'operator:root',
  expires_at: null, first_used_at: null, last_used_at: null, revoked_at: null, revoked_by: null, revoke_reason: null, rotated_from: null, rotated_to: null,
}
const valid = { valid: true, key_id: id, mecha: { handle: 'sales^acmecorp', name: 'sales', crew: 'acmecorp' }, org_id: 'acmecorp', scopes: [], metadata: {}, expires_at: null }
const page = { keys: Array.from({ length: 50 }, () => key), next_cursor: null }

const app = Fastify()
app.setValidatorCompiler(schemaCompiler())
for (const schema of [KeySchema, GatewaySchema, EventSchema]) app.addSchema(schema)
app.post('/v1/verify', { schema: { body: VerifyBody, response: { 200: answer('A verdict', VerifyAnswer) } } }, async () => valid)
app.post('/v1/keys', { schema: { headers: IdempotencyHeaders, body: IssueBody, response: { 201: answer('A key', RevealedKey) } } }, async (_request, reply) =>
  reply.code(201).send({ key, plaintext_key: 'x'.repeat(93) }),
)
app.get('/v1/keys', { schema: { querystring: ListQuery, response: { 200: answer('A page', KeyPage) } } }, async () => page)

process.stdout.write(`${await app.listen({ host: '127.0.0.1', port: 0 })}\n`)
