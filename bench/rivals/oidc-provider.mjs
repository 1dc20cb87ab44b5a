/** oidc-provider introspecting (RFC 7662) an opaque access token that its memory adapter holds. */

import { randomBytes } from 'node:crypto'
import { createServer } from 'node:http'
import Provider from 'oidc-provider'

const server = createServer().listen(0, '127.0.0.1')
await new Promise((resolve) => server.once('listening', resolve))
const url = `http://127.0.0.1:${server.address().port}`
const client = { client_id: 'bench', client_secret: randomBytes(32).toString('hex'), grant_types: ['client_credentials'], redirect_uris: [], response_types: [] }
// Its warnings about keys and adapters of development go to where warnings go.
const provider = new Provider(url, {
  clients: [client],
  features: { introspection: { enabled: true, allowedPolicy: () => true }, clientCredentials: { enabled: true } },
})
server.on('request', provider.callback())

const headers = {
  authorization: `Basic ${Buffer.from(`${client.client_id}:${client.client_secret}`).toString('base64')}`,
  'content-type': 'application/x-www-form-urlencoded',
}
const issued = await fetch(`${url}/token`, { method: 'POST', headers, body: 'grant_type=client_credentials' })
const { access_token } = await issued.json()
const body = `token=${access_token}`
const { active } = await (await fetch(`${url}/token/introspection`, { method: 'POST', headers, body })).json()
if (!active) throw new Error('the token is not active')
process.stdout.write(`${JSON.stringify({ url: `${url}/token/introspection`, headers, body })}\n`)
