import { once } from 'node:events'
import { Agent, METHODS, request, type IncomingMessage } from 'node:http'
import { connect, type AddressInfo } from 'node:net'
import { text } from 'node:stream/consumers'
import type { FastifyInstance } from 'fastify'
import { sql } from 'kysely'
import t, { type Test } from 'tap'
import { applied } from '../../helpers/database.js'
import { eventually } from '../../helpers/eventually.js'
import { isSameAnswer } from '../../helpers/refusals.js'
import { fresh, startService, type Answer, type Service } from '../../helpers/service.js'
import { layWire } from '../../helpers/wire.js'

const NAMES = ['x-mecha-id', 'x-mecha-handle', 'x-mecha-crew', 'x-mecha-org', 'x-mecha-scopes', 'x-mecha-key-id']
const NOBODY = Object.fromEntries(NAMES.map((name) => [name, '']))
/** All but `CONNECT`, which names no path. */
const TAKEN = METHODS.filter((method) => method !== 'CONNECT')

/** Asks as a proxy of `acme` does, about a request with these headers. */
async function asker(service: Service) {
  const gateway = `Bearer ${await service.gateway()}`
  return (headers: Record<string, string>, rest = '') => service.call('GET', `/v1/authz${rest}`, { headers: { 'x-gateway-authorization': gateway, ...headers } })
}

function identityIn({ headers }: Pick<Answer, 'headers'>) {
  return Object.fromEntries(NAMES.map((name) => [name, headers[name]]))
}

t.test('200: whose key it is, in headers that are always there', async (t) => {
  const service = await startService(t)
  const ask = await asker(service)
  const { key, plaintext_key } = await service.issue({ scopes: ['orders:read', 'orders:write'] })
  const plain = await service.issue({ mecha: 'buyer^seoul_cafe' })
  const expected = { 'x-mecha-id': 'sales^acmecorp', 'x-mecha-handle': 'sales^acmecorp', 'x-mecha-crew': 'acmecorp', 'x-mecha-org': 'acme', 'x-mecha-scopes': 'orders:read orders:write', 'x-mecha-key-id': key.id }
  const ways: Record<string, string>[] = [{ 'x-mecha-key': plaintext_key }, { 'x-mecha-key': `secret-token:${plaintext_key}` }, { authorization: `Bearer ${plaintext_key}` }, { authorization: `bearer  ${plaintext_key}` }, { 'x-mecha-key': '', authorization: `Bearer ${plaintext_key}` }, { 'x-mecha-key': plaintext_key, authorization: 'Basic eDp5' }]
  for (const headers of ways) {
    const answer = await ask(headers)
    t.match(answer, { status: 200, text: '', headers: { 'cache-control': 'no-store', 'content-length': '0' } })
    t.same(identityIn(answer), expected)
  }
  t.match(identityIn(await ask({ 'x-mecha-key': plain.plaintext_key })), { 'x-mecha-crew': 'seoul_cafe', 'x-mecha-scopes': '' }, 'a key without scopes has an empty header')
  t.equal((await ask({ 'x-mecha-key': plaintext_key, 'x-request-id': 'of-the-proxy' })).headers['x-request-id'], 'of-the-proxy')
  t.match((await service.call('GET', `/v1/keys/${key.id}`, { token: await service.token() })).body, { first_used_at: String }, 'and it counts as a use')
})

t.test('403: a scope that the key lacks, and another Mecha than the one asked for', async (t) => {
  const service = await startService(t)
  const ask = await asker(service)
  const { plaintext_key } = await service.issue({ scopes: ['a', 'b:c'] })
  const of = async (query: string) => (await ask({ 'x-mecha-key': plaintext_key }, query)).status
  const pass = ['?', '?scope=a', '?scope=a&scope=b%3Ac', '?scope=a%20b:c', '?scope=b:c++a+', '?mecha=sales%5Eacmecorp', '?mecha=sales^acmecorp&scope=a', '?mecha=sales^acmecorp&mecha=sales^acmecorp', '/any/path?scope=a', '/?scope=a', '?other=x&scope=a',
    '?scope=a&request=/path?scope=x&mecha=y', '?request=&scope=x', '?request=%zz&scope=x']
  for (const query of pass) t.equal(await of(query), 200, query)
  const fail = ['?scope=x', '?scope=a&scope=x', '?scope=a%20x', '?scope=a&scopes=x', '?scopes=x', '?scope=', '?scope=%20', '?scope=a&scope=', '?scope=A', '?scope=a,b:c', '?mecha=buyer^acmecorp', '?mecha=', '?mecha=sales', '?mecha=SALES^acmecorp',
    '?mecha=sales^acmecorp&mecha=buyer^acmecorp', '?mecha=buyer^acmecorp&mecha=sales^acmecorp', '/any/path?scope=x', '/%zz?scope=x', '?scope=%zz', '?scope=%00', '?scope=x&request=/path', '?arequest=1&scope=x', '?mecha=%F0%9F%98%80', `?scope=${'x'.repeat(10_000)}`]
  for (const query of fail) t.equal(await of(query), 403, query)

  const scope = await ask({ 'x-mecha-key': plaintext_key }, '?scope=a&scope=x:y')
  t.match(scope, { status: 403, headers: { ...NOBODY, 'content-type': /^application\/problem\+json/, 'cache-control': 'no-store' }, body: { code: 'insufficient_scope', status: 403 } })
  t.equal(scope.headers['www-authenticate'], 'Bearer realm="mecha-keys", error="insufficient_scope", error_description="The key does not have every scope that is asked for.", scope="a x:y"')
  const mecha = await ask({ 'x-mecha-key': plaintext_key }, '?mecha=buyer^acmecorp')
  t.match(mecha, { status: 403, headers: NOBODY, body: { code: 'mecha_mismatch' } })
  t.match(mecha.headers['www-authenticate'], /^Bearer realm="mecha-keys", error="insufficient_scope", error_description="[^"]+"$/)
  for (const odd of ['x"y', 'x\r\nSet-Cookie: a=b', 'x\\', 'ä', '\0'])
    t.notMatch((await ask({ 'x-mecha-key': plaintext_key }, `?scope=${encodeURIComponent(odd)}`)).headers['www-authenticate'], /, scope=/, 'what is no scope is not repeated')
})

t.test('401: no key, no good one, or two of them', async (t) => {
  const service = await startService(t)
  const ask = await asker(service)
  const token = await service.token()
  const good = await service.issue()
  const bad = 'Bearer realm="mecha-keys", error="invalid_token", error_description="'
  const refused = async (headers: Record<string, string>, challenge: string, what: string) => {
    const answer = await ask(headers)
    t.match(answer, { status: 401, headers: { ...NOBODY, 'content-type': /^application\/problem\+json/, 'cache-control': 'no-store' }, body: { code: 'unauthenticated', status: 401 } }, what)
    t.ok(String(answer.headers['www-authenticate']).startsWith(challenge), `${what}: ${String(answer.headers['www-authenticate'])}`)
    t.equal(String(answer.headers['www-authenticate']).includes('error='), challenge === bad, `${what}: who sent nothing is told of no error (RFC 6750, section 3.1)`)
    return answer
  }
  const none = 'Bearer realm="mecha-keys"'
  for (const headers of [{}, { 'x-mecha-key': '' }, { authorization: '' }, { authorization: 'Basic eDp5' }, { authorization: 'Bearer' }, { authorization: good.plaintext_key }] as Record<string, string>[])
    await refused(headers, none, JSON.stringify(headers).replace(good.plaintext_key, '<key>'))
  await refused({ 'x-mecha-key': 'nonsense' }, bad, 'nonsense')
  await refused({ 'x-mecha-key': `${good.plaintext_key}, ${good.plaintext_key}` }, bad, 'a header that came twice')
  await refused({ 'x-mecha-key': 'nonsense', authorization: `Bearer ${good.plaintext_key}` }, bad, 'a good key beside a wrong one')
  await refused({ 'x-mecha-key': good.plaintext_key, authorization: `Bearer ${good.plaintext_key}` }, bad, 'a key in both headers')
  await refused({ 'x-mecha-key': await service.gateway() }, bad, 'a gateway credential')
  const foreign = await service.issue({ mecha: 'sales^globexcrew' }, { org: 'globex' })
  await refused({ 'x-mecha-key': foreign.plaintext_key }, bad, 'a key of another organization')
  const { body: disabled } = await service.call('POST', '/v1/keys', { token, body: { mecha: 'sales^acmecorp' } })
  await service.call('PATCH', `/v1/keys/${disabled.key.id}`, { token, body: { enabled: false } })
  await refused({ 'x-mecha-key': disabled.plaintext_key }, `${bad}`, 'a disabled key')
  t.equal((await ask({ 'x-mecha-key': good.plaintext_key })).status, 200)
  await service.call('POST', `/v1/keys/${good.key.id}/revoke`, { token })
  await applied(service.database)
  const revoked = await refused({ 'x-mecha-key': good.plaintext_key }, bad, 'a revoked key')
  t.equal(revoked.body.detail, 'The key is revoked.')
})

for (const [environment, status] of [[{}, 403], [{ AUTHZ_UNAVAILABLE: '503' }, 503]] as const)
  t.test(`${status}: a proxy without a good credential is an outage to its clients, and in the log it is what it is`, async (t) => {
    const service = await startService(t, environment)
    const { plaintext_key } = await service.issue()
    const [gateway, token] = [await service.gateway(), await service.token()]
    const ask = (headers: Record<string, string>) => service.call('GET', '/v1/authz', { headers: { 'x-mecha-key': plaintext_key, ...headers } })
    const without = await ask({})
    t.match(without, { status, headers: { 'www-authenticate': undefined, 'retry-after': /\d/, 'cache-control': 'no-store', ...NOBODY }, body: { status, code: 'gateway_unauthenticated' } }, 'nothing says that the key is bad')
    const wrong = ['', gateway, `Bearer ${gateway}x`, `Bearer ${plaintext_key}`, `Bearer ${token}`, `Bearer ${gateway}, Bearer ${gateway}`, `Basic ${gateway}`]
    for (const credential of wrong) isSameAnswer(t, await ask({ 'x-gateway-authorization': credential }), without, 'no credential, or a wrong one')
    isSameAnswer(t, await service.call('GET', '/v1/authz', { headers: { 'x-mecha-key': 'nonsense' } }), without, 'whatever the key is')
    isSameAnswer(t, await ask({ authorization: `Bearer ${gateway}` }), without, 'Authorization is where a key can be, and no gateway credential')

    t.equal((await ask({ 'x-gateway-authorization': `Bearer ${gateway}` })).status, 200)
    const { body } = await service.call('GET', '/v1/gateways', { token })
    for (const { id } of body.gateways) await service.call('POST', `/v1/gateways/${id}/revoke`, { token })
    await applied(service.database)
    isSameAnswer(t, await ask({ 'x-gateway-authorization': `Bearer ${gateway}` }), without, 'a credential that was revoked')

    const causes = [...service.logs().matchAll(/"level":40,.*"code":"gateway_unauthenticated","cause":"(.*?)","msg":"request refused"/g)].map(([, cause]) => cause)
    t.same([...new Set(causes)].sort(), ['malformed', 'missing', 'revoked', 'unknown'].map((what) => `X-Gateway-Authorization: ${what}`))
    t.match(service.logs(), /"route":"\/v1\/authz".*"code":"gateway_unauthenticated","reason":"The proxy/)
    t.notOk(service.logs().includes(gateway))
  })

t.test('401: a key that hides behind another header of its name', async (t) => {
  const service = await startService(t)
  const port = Number(new URL(await service.app.listen({ host: '127.0.0.1', port: 0 })).port)
  const gateway = await service.gateway()
  const [{ plaintext_key: key }, { plaintext_key: other }] = [await service.issue(), await service.issue()]
  const ask = (...headers: string[]) => raw(port, `GET /v1/authz HTTP/1.1\r\nHost: x\r\nX-Gateway-Authorization: Bearer ${gateway}\r\n${headers.map((line) => `${line}\r\n`).join('')}\r\n`)
  for (const headers of [
    [`X-Mecha-Key: ${key}`, 'Authorization: Bearer of-the-application', `Authorization: Bearer ${other}`],
    [`X-Mecha-Key: ${key}`, `AUTHORIZATION: Bearer ${other}`, 'Authorization: Bearer of-the-application'],
    [`X-Mecha-Key: ${key}`, 'Authorization: ', 'Authorization: Basic eDp5', `Authorization: Bearer ${other}`],
    [`Authorization: Bearer ${key}`, `Authorization: Bearer ${other}`],
    [`Authorization: Bearer ${key}`, 'Authorization: Basic eDp5'],
    ['Authorization: Basic eDp5', `Authorization: Bearer ${key}`],
    ['Authorization: ', `Authorization: Bearer ${key}`],
    [`X-Mecha-Key: ${key}`, `X-Mecha-Key: ${other}`],
    [`X-Mecha-Key: ${key}`, `x-mecha-key: ${key}`],
    ['X-Mecha-Key: ', `X-Mecha-Key: ${key}`],
  ]) {
    const answer = await ask(...headers)
    t.match(answer, /^HTTP\/1\.1 401 .*"detail":"Send the key in one header, not in two\."/s, headers.map((line) => line.replaceAll(/mecha_\w+/g, '<key>')).join(' + '))
    t.match(answer, /error="invalid_token"/)
  }
  t.match(await ask(`X-Mecha-Key: ${key}`, 'Authorization: Bearer a', 'Authorization: Bearer b'), /^HTTP\/1\.1 200 /, 'what the application makes of two of its own is its affair')
})

t.test('any method, any path, any body, on one connection that stays', async (t) => {
  const service = await startService(t)
  const { port } = new URL(await service.app.listen({ host: '127.0.0.1', port: 0 }))
  const gateway = `Bearer ${await service.gateway()}`
  const { plaintext_key } = await service.issue()
  const agent = new Agent({ keepAlive: true, maxSockets: 1 })
  t.teardown(() => agent.destroy())
  const sockets = new Set<unknown>()
  const send = async (method: string, path: string, headers: Record<string, string> = {}, body?: string) => {
    const sent = request({ host: '127.0.0.1', port, path, agent, method, headers: { 'x-gateway-authorization': gateway, 'x-mecha-key': plaintext_key, ...(body !== undefined && !headers['transfer-encoding'] && { 'content-length': body.length }), ...headers } })
    sent.end(body)
    const [response] = (await once(sent, 'response')) as [IncomingMessage]
    sockets.add(sent.socket)
    t.equal(await text(response), '')
    return { status: response.statusCode!, headers: response.headers }
  }
  for (const method of TAKEN) t.match(await send(method, '/v1/authz'), { status: 200, headers: { 'x-mecha-handle': 'sales^acmecorp' } }, method)
  for (const path of ['/v1/authz/', '/v1/authz/a/b?c=d', '/v1/authz//', '/v1/authz/../keys', '/v1/authz/%zz', '/v1/authz/%', `/v1/authz/${'x'.repeat(5000)}`, '/v1/authz/%00', '/v1/authz/a;b', '/v1/authz?%zz=%zz', '/v1/authz?&&==', `http://x/v1/authz/a`])
    t.equal((await send('GET', path)).status, 200, path.slice(0, 40))
  const bodies: [string, Record<string, string>][] = [['{', { 'content-type': 'application/json' }], ['x'.repeat(300_000), { 'content-type': 'application/json' }], ['x', {}], ['x', { 'content-type': 'nonsense' }], ['x'.repeat(50_000), { 'content-type': 'multipart/form-data' }], ['', { 'content-type': 'text/plain' }], ['chunked', { 'transfer-encoding': 'chunked' }]]
  for (const [body, headers] of bodies)
    for (const method of ['POST', 'PUT', 'PATCH', 'DELETE', 'GET', 'OPTIONS', 'PROPFIND'])
      t.equal((await send(method, '/v1/authz/upload', headers, body)).status, 200, `${method} with ${body.length} bytes`)
  const odd: Record<string, string>[] = [{ expect: 'something' }, { expect: '100-continue' }, { connection: 'keep-alive, upgrade', upgrade: 'websocket' }, { range: 'bytes=5-' }, { 'if-none-match': '*' }, { accept: 'image/png' }]
  for (const headers of odd) t.equal((await send('GET', '/v1/authz', headers)).status, 200, JSON.stringify(headers))
  t.equal(sockets.size, 1, 'none of them cost the connection')
  for (const path of ['/v1/authzx', '/v1/auth', '/x/v1/authz']) {
    const sent = request({ host: '127.0.0.1', port, path, agent }).end()
    const [response] = (await once(sent, 'response')) as [IncomingMessage]
    response.resume()
    t.equal(response.statusCode, 404, path)
  }
})

t.test('what is no request is refused as a proxy can take it', async (t) => {
  const service = await startService(t, { REQUEST_TIMEOUT: '1s', AUTHZ_LISTEN: '127.0.0.1:0' })
  const portOf = async (server: FastifyInstance) => Number(new URL(await server.listen({ host: '127.0.0.1', port: 0 })).port)
  const [main, door] = [await portOf(service.app), await portOf(service.authz!)]
  const refused = async (port: number, bytes: string, code: string, what: string) => {
    const answer = await raw(port, bytes)
    t.match(answer, /^HTTP\/1\.1 403 Forbidden\r\n/, what)
    t.match(answer, new RegExp(`"status":403.*"code":"${code}"`), what)
    for (const name of NAMES) t.match(answer, new RegExp(`^${name}: \r$`, 'm'), `${what}: ${name}`)
  }
  for (const port of [main, door]) {
    await refused(port, 'NONSENSE /v1/authz HTTP/1.1\r\nHost: x\r\n\r\n', 'invalid_request', 'an unknown method')
    await refused(port, `GET /v1/authz HTTP/1.1\r\nHost: x\r\nX-Big: ${'x'.repeat(20_000)}\r\n\r\n`, 'headers_too_large', 'large headers')
    await refused(port, `GET /v1/authz/${'x'.repeat(20_000)} HTTP/1.1\r\nHost: x\r\n\r\n`, 'headers_too_large', 'a long path')
    await refused(port, 'GET /v1/authz HTTP/1.1\r\nHost: x\r\nBad\x01Name: x\r\n\r\n', 'invalid_request', 'a header that is none')
    await refused(port, 'GET /v1/authz HTTP/1.1\r\nHost: x\r\nContent-Length: nonsense\r\n\r\n', 'invalid_request', 'a length that is none')
  }
  // Where the address says all, even what has not arrived is known to be for a proxy.
  await refused(door, 'GET /v1/authz HTTP/1.1\r\nHost:', 'request_timeout', 'half a head')
  t.match(await raw(door, 'GET /v1/authz HTTP/1.1\r\n\r\n'), /^HTTP\/1\.1 401 /, 'no host')
  t.match(await raw(main, 'NONSENSE /v1/verify HTTP/1.1\r\nHost: x\r\n\r\n'), /^HTTP\/1\.1 400 .*"status":400/s, 'elsewhere all is as ever')
})

/** Sends bytes as they are, says no more, and resolves to all that came back. */
async function raw(port: number, bytes: string): Promise<string> {
  const socket = connect(port, '127.0.0.1')
  socket.on('error', () => {}).write(bytes)
  let answer = ''
  socket.on('data', (chunk) => {
    answer += String(chunk)
    // An answer that leaves the connection open is whole with its head, here.
    if (/\r\nContent-Length: 0\r\n/i.test(answer) || !/connection: close/i.test(answer)) socket.end()
  })
  await once(socket, 'close')
  return answer
}

for (const [environment, status] of [[{}, 403], [{ AUTHZ_UNAVAILABLE: '503' }, 503]] as const)
  t.test(`${status}: nobody can say whether the key is good`, async (t) => {
    const first = await startService(t)
    const [gateway, known, other] = [await first.gateway(), await first.issue(), await first.issue()]
    const wire = await layWire(t, first.database.runtime)
    const database = { ...first.database, runtime: wire.through(first.database.runtime) }
    const roots = { ROOT_SECRETS: first.config.ROOT_SECRETS!.join() }
    const service = await startService(t, { ...roots, PLANES: 'runtime', REVOCATION_MAX_STALENESS: '1s', DATABASE_TIMEOUT: '1s', ...environment }, database)
    await fresh(service)
    const ask = (key: string) => service.call('GET', '/v1/authz', { headers: { 'x-gateway-authorization': `Bearer ${gateway}`, 'x-mecha-key': key } })
    t.equal((await ask(known.plaintext_key)).status, 200)
    wire.cut()
    t.match(await ask(other.plaintext_key), { status, headers: { 'retry-after': /\d/, ...NOBODY, 'www-authenticate': undefined }, body: { status, code: 'database_unavailable' } }, 'a key that is not known')
    t.equal((await ask('nonsense')).status, 401, 'what is no key is none all the same')
    await eventually(async () => (await ask(known.plaintext_key)).status !== 200)
    t.match(await ask(known.plaintext_key), { status, headers: { 'retry-after': /\d/, ...NOBODY }, body: { status, code: 'feed_stale' } }, 'a key that is known, past the bound')
    wire.restore()
    await eventually(async () => (await ask(other.plaintext_key)).status === 200)
    // What nobody foresaw.
    const fifth = await first.issue()
    await first.database.db.schema.alterTable('keys').renameTo('elsewhere').execute()
    t.match(await ask(fifth.plaintext_key), { status, headers: NOBODY, body: { status, code: 'internal_error' } })
    t.match(service.logs(), /"code":"internal_error","msg":"request failed"/, 'the log has the cause')
    await first.database.db.schema.alterTable('elsewhere').renameTo('keys').execute()
  })

t.test('while a body does not come and the database does not answer, the refusal is still one that a proxy can take', async (t) => {
  const first = await startService(t)
  const [gateway, { plaintext_key }] = [await first.gateway(), await first.issue()]
  const wire = await layWire(t, first.database.runtime)
  const service = await startService(t, { ROOT_SECRETS: first.config.ROOT_SECRETS!.join(), PLANES: 'runtime', REQUEST_TIMEOUT: '1s', DATABASE_TIMEOUT: '20s' }, { ...first.database, runtime: wire.through(first.database.runtime) })
  await service.app.listen({ host: '127.0.0.1', port: 0 })
  void wire.hold()
  const { port } = service.app.server.address() as AddressInfo
  const answer = await raw(port, `POST /v1/authz HTTP/1.1\r\nHost: x\r\nX-Gateway-Authorization: Bearer ${gateway}\r\nX-Mecha-Key: ${plaintext_key}\r\nContent-Length: 100\r\n\r\nhalf`)
  t.match(answer, /^HTTP\/1\.1 403 .*"code":"request_timeout"/s)
  wire.release()
})

t.test('what a header cannot hold is not put into one', async (t) => {
  const service = await startService(t)
  const ask = await asker(service)
  for (const scope of ['a b', 'a\r\nX-Mecha-Org: globex', 'ä', 'a\tb', '']) {
    const { plaintext_key } = await service.issue({ mecha: 'odd^acmecorp' })
    await service.database.db.updateTable('keys').set({ scopes: [scope] }).where('mecha', '=', 'odd^acmecorp').where('revoked_at', 'is', null).execute()
    await applied(service.database)
    t.match(await ask({ 'x-mecha-key': plaintext_key }), { status: 403, headers: NOBODY, body: { code: 'internal_error' } }, JSON.stringify(scope))
  }
})

t.test('AUTHZ_LISTEN serves /v1/authz and nothing else, to whoever reaches it, for one organization or for all', async (t) => {
  const service = await startService(t, { AUTHZ_LISTEN: '127.0.0.1:0' })
  const narrowed = await startService(t, { AUTHZ_LISTEN: '127.0.0.1:0', AUTHZ_ORG: 'globex', ROOT_SECRETS: service.config.ROOT_SECRETS!.join() }, service.database)
  const [acmes, globexs] = [await service.issue({ scopes: ['a'] }), await service.issue({ mecha: 'sales^globexcrew' }, { org: 'globex' })]
  const ask = async ({ authz }: Service, key: string, url = '/v1/authz') => {
    const { statusCode: status, headers } = await authz!.inject({ method: 'GET', url, headers: { 'x-mecha-key': key } })
    return { status, headers }
  }
  t.match(await ask(service, acmes.plaintext_key), { status: 200, headers: { 'x-mecha-org': 'acme' } })
  t.match(await ask(service, globexs.plaintext_key), { status: 200, headers: { 'x-mecha-org': 'globex' } })
  t.match(await ask(narrowed, globexs.plaintext_key), { status: 200, headers: { 'x-mecha-org': 'globex' } })
  t.match(await ask(narrowed, acmes.plaintext_key), { status: 401, headers: NOBODY })
  t.equal((await ask(service, acmes.plaintext_key, '/v1/authz/x?scope=b')).status, 403)
  t.equal((await ask(service, 'nonsense')).status, 401)
  t.equal((await ask(service, await service.gateway())).status, 401)

  const token = await service.token()
  const gateway = await service.gateway()
  for (const [method, url] of [['GET', '/'], ['GET', '/livez'], ['GET', '/readyz'], ['GET', '/metrics'], ['GET', '/openapi.json'], ['GET', '/docs'], ['GET', '/errors/not_found'], ['GET', '/v1/keys'], ['POST', '/v1/keys'], ['POST', '/v1/verify'], ['GET', '/v1/authz%2f..%2fkeys'], ['GET', '//v1/authz']] as const)
    for (const credential of [token, gateway]) {
      const { statusCode } = await service.authz!.inject({ method, url, headers: { authorization: `Bearer ${credential}`, 'content-type': 'application/json' }, ...(method === 'POST' && { payload: { mecha: 'sales^acmecorp', key: acmes.plaintext_key } }) })
      t.equal(statusCode, 404, `${method} ${url}`)
    }
  t.equal((await service.call('GET', '/v1/authz', { headers: { 'x-mecha-key': acmes.plaintext_key } })).status, 403, 'the main listener asks for the gateway as ever')
  t.equal((await startService(t, {}, service.database)).authz, undefined, 'and without the setting there is no other')
})

t.test('what is asked at /v1/authz is logged, counted and answered from memory like a verify', async (t) => {
  const service = await startService(t, { AUTHZ_LISTEN: '127.0.0.1:0', LOG_LEVEL: 'trace' })
  await fresh(service)
  const ask = await asker(service)
  const { plaintext_key } = await service.issue()
  t.equal((await ask({ 'x-mecha-key': plaintext_key }, '/some/path?scope=')).status, 403)
  t.equal((await ask({ authorization: `Bearer ${plaintext_key}` })).status, 200)
  const queries = async () => (await service.call('GET', '/metrics')).text.match(/^mecha_keys_database_queries_total\{plane="runtime"\} \d+$/m)![0]
  const before = await queries()
  for (let i = 0; i < 20; i++) t.equal((await ask({ 'x-mecha-key': plaintext_key })).status, 200)
  t.equal(await queries(), before)
  t.equal((await service.authz!.inject({ url: '/v1/authz', headers: { 'x-mecha-key': plaintext_key } })).statusCode, 200)
  const { text: metrics } = await service.call('GET', '/metrics')
  t.match(metrics, /mecha_keys_http_request_seconds_count\{method="GET",route="\/v1\/authz",status="200"\} 22\n/)
  t.match(metrics, /mecha_keys_http_request_seconds_count\{method="GET",route="\/v1\/authz",status="403"\} 1\n/)
  t.match(service.logs(), /"method":"GET","route":"\/v1\/authz".*"status":403/)
  t.notOk(service.logs().includes(plaintext_key) || service.logs().includes('/some/path'))
})

t.test('a refusal of one key says nothing that would tell it from another of its kind', async (t: Test) => {
  const service = await startService(t)
  const ask = await asker(service)
  const foreign = await service.issue({ mecha: 'sales^globexcrew' }, { org: 'globex' })
  const gone = await service.issue()
  await sql`DELETE FROM keys WHERE mecha = 'sales^acmecorp'`.execute(service.database.db)
  await applied(service.database)
  isSameAnswer(t, await ask({ 'x-mecha-key': foreign.plaintext_key }), await ask({ 'x-mecha-key': gone.plaintext_key }), 'of another organization, and never there')
})
