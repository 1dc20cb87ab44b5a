/**
 * The ceiling: a bare Fastify route with verify's own request and response schemas and a canned answer. What it does
 * not reach, no service on the same framework does. Prints its address and serves until it is killed.
 */

import Fastify from 'fastify'
import { answer } from '../src/http/schemas.js'
import { createCompilers } from '../src/http/validation.js'
import { VerifyAnswer, VerifyBody } from '../src/runtime/verify/schemas.js'

const valid = {
  valid: true, key_id: 'key_01jd9p5v3fe8rr2k7m4q9wx0zt', mecha: { handle: 'sales^acmecorp', name: 'sales', crew: 'acmecorp' },
  org_id: 'acmecorp', scopes: [], metadata: {}, expires_at: null,
}

const app = Fastify({ schemaController: { compilersFactory: createCompilers() as never } })
app.post('/v1/verify', { schema: { body: VerifyBody, response: { 200: answer('A verdict', VerifyAnswer) } } }, async () => valid)
process.stdout.write(`${await app.listen({ host: '127.0.0.1', port: 0 })}\n`)
