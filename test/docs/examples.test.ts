import t, { type Test } from 'tap'
import type { Scope } from '../../src/control/operators/scopes.js'
import { compilerOf, contractOf, operationsOf, successOf, type Entry } from '../helpers/contract.js'
import { introspect } from '../helpers/oauth.js'
import { NOTHING } from '../helpers/refusals.js'
import { startService, type Answer, type Service } from '../helpers/service.js'

t.test('every example of the contract is answered as the contract says', async (t) => {
  const service = await startService(t)
  const contract = contractOf()
  const compile = compilerOf(contract)
  const operations = operationsOf(contract)
  t.ok(operations.length > 10)

  for (const entry of operations) {
    const { name, path, method, operation } = entry
    // A stream has no end: test/runtime/changes/sse.test.ts listens to it.
    if (operation.operationId !== 'followChanges') t.test(name, async (t) => {
      const status = successOf(operation)
      const answer = await send(service, entry, await credentialsFor(service, entry))
      t.equal(String(answer.status), status, answer.text)
      conforms(t, answer, status)
      if (operation.operationId === 'verifyKey') t.match(answer.body, { valid: false }, 'the example key was never issued')
      if (operation.operationId === 'introspectToken') t.same(answer.body, { active: false }, 'and neither here')
      if (operation.operationId === 'verifyKeys') t.match(answer.body, { results: [{ valid: false }, { valid: false }] }, 'nor were these')
    })

    if (operation.security.length === 0) continue
    t.test(`${name} without a credential`, async (t) => {
      const answer = await send(service, entry)
      // For a proxy without one of its own it is an outage to the proxy's client, who is not to try another key.
      const isProxy = operation.operationId === 'authorize'
      const status = isProxy ? '403' : '401'
      t.equal(String(answer.status), status)
      if (isProxy) t.equal(answer.headers['www-authenticate'], undefined)
      conforms(t, answer, status, isProxy ? ['WWW-Authenticate'] : [])
    })

    function conforms(t: Test, { headers, text, body = text }: Answer, status: string, without: string[] = []): void {
      const documented = operation.responses[status]!
      for (const header of Object.keys(documented.headers ?? {})) if (!without.includes(header)) t.ok(headers[header.toLowerCase()], `${header} is there`)
      if (!documented.content) return void t.equal(text, '')
      const type = String(headers['content-type']).split(';')[0]!
      t.ok(documented.content[type], `${type} is documented`)
      const valid = compile('paths', path, method.toLowerCase(), 'responses', status, 'content', type, 'schema')
      t.ok(valid(body), 'the body is as documented', { errors: valid.errors, body })
    }
  }
})

t.test('verify of a valid key, and pages that hold something, are as the contract says', async (t) => {
  const service = await startService(t)
  const compile = compilerOf(contractOf())
  const token = await service.token()
  const { key, plaintext_key } = await service.issue({ name: 'production', scopes: ['orders:read'], metadata: { region: 'eu' }, expires_in: 3600 })
  const verdict = await service.verify(plaintext_key, { mecha: key.mecha, scopes: ['orders:read'] })
  t.equal(verdict.valid, true)
  const asDocumented = (path: string, method: string, body: unknown) => {
    const valid = compile('paths', path, method, 'responses', '200', 'content', 'application/json', 'schema')
    t.ok(valid(body), `${method} ${path}`, { errors: valid.errors, body })
  }
  asDocumented('/v1/verify', 'post', verdict)
  asDocumented('/v1/introspect', 'post', await introspect(service, await service.gateway(), plaintext_key))
  const batch = await service.call('POST', '/v1/verify/batch', { token: await service.gateway(), body: { keys: [{ key: plaintext_key }, { key: 'x' }] } })
  t.match(batch.body, { results: [{ valid: true }, { valid: false }] })
  asDocumented('/v1/verify/batch', 'post', batch.body)
  await service.call('POST', `/v1/keys/${key.id}/rotate`, { token })
  await service.call('POST', `/v1/keys/${key.id}/revoke`, { token, body: { reason: 'x' } })
  for (const [path, list] of [['/v1/keys', 'keys'], ['/v1/gateways', 'gateways'], ['/v1/events', 'events']] as const) {
    const { body } = await service.call('GET', path, { token })
    t.ok(body[list].length > 0, path)
    asDocumented(path, 'get', body)
  }
})

/** What a client might choose: the contract has no example of what may be left out, because tools would fill it in. */
const CHOSEN: Record<string, string> = {
  'Prefer': 'wait=5', 'Idempotency-Key': '5a0c8e6e-58f5-4ec6-9d04-0d3c6c1b7f1e',
  'mecha': 'sales^acmecorp', 'key_id': NOTHING.key, 'status': 'active', 'type': 'key.issued', 'limit': '50', 'after': '0', 'scope': 'orders:read',
}

/** Sends the documented example, with the id of something that is there. */
async function send(service: Service, { method, path, operation }: Entry, credentials: Record<string, string> = {}): Promise<Answer> {
  const { parameters = [] } = operation
  const examples = (place: 'path' | 'query' | 'header') =>
    parameters.filter((one) => one.in === place).flatMap(({ name, example = CHOSEN[name] }) => (example === undefined ? [] : [[name, example as string] as const]))
  const ids = { '/v1/keys/{id}': () => service.issue().then(({ key }) => key.id), '/v1/gateways/{id}': () => gatewayId(service) }
  let url = path
  for (const [place, make] of Object.entries(ids)) if (path.startsWith(place)) url = url.replace('{id}', await make())
  for (const [name, value] of examples('path')) url = url.replace(`{${name}}`, encodeURIComponent(value))
  const query = new URLSearchParams(Object.fromEntries(examples('query'))).toString()
  const { headers, ...body } = await exampleBody(service, operation)
  const options = { ...body, headers: { ...Object.fromEntries(examples('header')), ...headers, ...credentials } }
  return service.call(method as 'GET', query ? `${url}?${query}` : url, options)
}

/** The example, as JSON or as a form; with a key and a time that are good where nothing is answered but for one. */
async function exampleBody(service: Service, { operationId, requestBody }: Entry['operation']): Promise<{ body?: unknown; headers?: Record<string, string> }> {
  const form = requestBody?.content['application/x-www-form-urlencoded']?.example as Record<string, string> | undefined
  if (!form) {
    const body = requestBody?.content['application/json']?.example as object | undefined
    const good = operationId === 'takeNonce' && { key_id: (await service.issue()).key.id, expires_at: new Date(Date.now() + 60_000).toISOString() }
    return body ? { body: { ...body, ...good } } : {}
  }
  const good = operationId === 'exchangeKey' && { subject_token: (await service.issue({ scopes: ['orders:read'] })).plaintext_key }
  return { body: new URLSearchParams({ ...form, ...good }).toString(), headers: { 'content-type': 'application/x-www-form-urlencoded' } }
}

/** An operator each, so that the one example of an Idempotency-Key is a new one to everybody; with the named scope alone. */
async function credentialsFor(service: Service, { operation }: Entry): Promise<Record<string, string>> {
  const [needs = {}] = operation.security
  const bearer = async (credential: Promise<string>) => `Bearer ${await credential}`
  const credentials: Record<string, string> = {}
  if (needs['operator']) credentials['authorization'] = await bearer(service.token({ subject: operation.operationId, scopes: [operation['x-scope'] as Scope] }))
  if (needs['gateway']) credentials['authorization'] = await bearer(service.gateway())
  if (needs['proxy']) credentials['x-gateway-authorization'] = await bearer(service.gateway())
  if (needs['mechaKey']) credentials['x-mecha-key'] = (await service.issue({ scopes: ['orders:read'] })).plaintext_key
  return credentials
}

async function gatewayId(service: Service): Promise<string> {
  const { body } = await service.call('POST', '/v1/gateways', { token: await service.token(), body: { name: 'edge' } })
  return body.gateway.id
}
