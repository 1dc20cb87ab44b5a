/**
 * better-auth's API keys behind a bare Fastify route, as an application would put them. Its tables are made in the
 * database that `DATABASE_URL` names. Rate limits are off: a limit that is reached would be faster than a verify.
 */

import { randomBytes } from 'node:crypto'
import { apiKey } from '@better-auth/api-key'
import { betterAuth } from 'better-auth'
import { getMigrations } from 'better-auth/db/migration'
import Fastify from 'fastify'
import pg from 'pg'

const options = {
  database: new pg.Pool({ connectionString: process.env.DATABASE_URL, max: 10 }),
  secret: randomBytes(32).toString('base64url'),
  baseURL: 'http://127.0.0.1',
  emailAndPassword: { enabled: true },
  plugins: [apiKey({ rateLimit: { enabled: false } })],
  telemetry: { enabled: false },
}
await (await getMigrations(options)).runMigrations()
const auth = betterAuth(options)
const { user } = await auth.api.signUpEmail({ body: { name: 'Bench', email: 'bench@example.com', password: randomBytes(16).toString('hex') } })
const { key } = await auth.api.createApiKey({ body: { userId: user.id } })

const app = Fastify()
app.post('/verify', async ({ body }, reply) => {
  const { valid, key: found } = await auth.api.verifyApiKey({ body })
  return reply.code(valid ? 200 : 401).send({ valid, key: found })
})
process.stdout.write(`${JSON.stringify({ url: `${await app.listen({ host: '127.0.0.1', port: 0 })}/verify`, body: JSON.stringify({ key }) })}\n`)
