import { once } from 'node:events'
import { connect, type AddressInfo } from 'node:net'
import t from 'tap'
import { contractOf } from '../helpers/contract.js'
import { fresh, startService, type Service } from '../helpers/service.js'

t.test('404 and 405 are problems, and 405 says what the path takes', async (t) => {
  const service = await startService(t)
  for (const url of ['/v1', '/v2/keys', '/v1/keys/a/b/c']) {
    const answer = await service.call('GET', url)
    t.match(answer, { status: 404, headers: { 'content-type': 'application/problem+json' }, body: { code: 'route_not_found' } }, url)
  }
  for (const [method, url, allow] of [
    ['DELETE', '/v1/keys', 'GET, HEAD, POST'], ['PUT', '/v1/keys/key_1', 'GET, HEAD, PATCH'], ['GET', '/v1/verify', 'POST'], ['POST', '/livez', 'GET, HEAD'],
    ['GET', '/v1/keys/x/rotate', 'POST'],
  ] as const)
    t.match(await service.call(method, url, { body: {} }), { status: 405, headers: { allow }, body: { code: 'method_not_allowed' } }, `${method} ${url}`)
})

t.test('every path that exists answers every method that it does not take with 405, whatever was sent along', async (t) => {
  const { app } = await startService(t)
  const paths = ['/', ...Object.keys(contractOf().paths).map((path) => path.replace(/\{\w+\}/g, 'x%20y')), '/docs', '/docs/', '/docs/static/x', '/errors/not_found', '/openapi.json', '/metrics']
  const bodies = [{}, { payload: '{', headers: { 'content-type': 'application/json' } }, { payload: '<x/>', headers: { 'content-type': 'text/xml' } }]
  for (const url of paths.filter((one) => one !== '/v1/authz'))
    for (const method of ['TRACE', 'OPTIONS', 'QUERY', 'PROPFIND', 'DELETE']) {
      const answers = await Promise.all(bodies.map((body) => app.inject({ method: method as 'DELETE', url: `${url}?x=y`, ...body })))
      const told = answers.map(({ statusCode, headers }) => `${statusCode} ${String(headers['content-type'])} ${String(headers['allow'])}`)
      t.match(told, bodies.map(() => /^405 application\/problem\+json (GET, HEAD(, PATCH|, POST)?|GET|POST)$/), `${method} ${url}: ${told[0]}`)
    }
  for (const [which, body] of bodies.entries()) t.equal((await app.inject({ method: 'POST', url: '/v1/nowhere', ...body })).statusCode, 404, `404 ${which}`)
})

t.test('a request id is taken over when it is one, and made when it is not', async (t) => {
  const service = await startService(t)
  const id = async (given?: string) => (await service.call('GET', '/livez', given === undefined ? {} : { headers: { 'x-request-id': given } })).headers['x-request-id']
  t.equal(await id('abc-1.2_3'), 'abc-1.2_3')
  for (const odd of [undefined, '', 'a b', 'x'.repeat(65), 'ä', (await service.issue()).plaintext_key]) t.match(await id(odd), /^[\w-]{12}\.\d+$/)
  await service.call('GET', '/readyz', { headers: { 'x-request-id': 'find-me' } })
  t.match(service.logs(), /"request_id":"find-me".*"route":"\/readyz"/)
  t.notMatch(service.logs(), /"route":"\/livez"/, 'a probe of liveness is no line in the log')
  const talkative = await startService(t, { LOG_LEVEL: 'debug' }, service.database)
  await talkative.call('GET', '/livez')
  t.match(talkative.logs(), /"level":20,[^\n]*"route":"\/livez"/, 'unless debug is asked for')
  t.equal((await service.call('GET', '/nowhere', { headers: { 'x-request-id': 'lost' } })).headers['x-request-id'], 'lost')
})

t.test('each plane serves its own routes and not the other\'s', async (t) => {
  const control = await startService(t, { PLANES: 'control' })
  const runtime = await startService(t, { PLANES: 'runtime', BUILTIN_ISSUER: 'off' }, control.database)
  t.equal((await control.call('POST', '/v1/verify', { body: {} })).status, 404)
  t.equal((await runtime.call('GET', '/v1/keys')).status, 404)
  t.equal((await control.call('GET', '/v1/keys')).status, 401)
  t.equal((await runtime.call('POST', '/v1/verify', { body: {} })).status, 401)
  await fresh(runtime)
  t.match((await runtime.call('GET', '/readyz')).body, { checks: { database_runtime: 'ok', feed: 'ok' } })
  t.equal((await control.call('GET', '/readyz')).body.checks.database_runtime, undefined)
})

t.test('probes: alive, ready, draining', async (t) => {
  const service = await startService(t)
  t.same((await service.call('GET', '/livez')).body, { alive: true })
  await fresh(service)
  t.match(await service.call('GET', '/readyz'), { status: 200, body: { ready: true } })
  service.startDraining()
  t.match(await service.call('GET', '/readyz'), { status: 503, body: { ready: false, checks: { draining: 'draining' } } })
  t.equal((await service.call('GET', '/livez')).status, 200)
})

t.test('metrics count what happened and name nobody', async (t) => {
  const service = await startService(t)
  const { key, plaintext_key } = await service.issue({ mecha: 'canary^aviary' }, { org: 'canaries-inc' })
  const gateway = await service.gateway({ org: 'canaries-inc' })
  await service.verify(plaintext_key, {}, gateway)
  await service.verify('nonsense', {}, gateway)
  const { text, headers } = await service.call('GET', '/metrics')
  t.match(headers['content-type'], 'text/plain')
  t.match(text, /mecha_keys_verifications_total\{credential="mecha",result="valid"\} 1\n/)
  t.match(text, /mecha_keys_verifications_total\{credential="mecha",result="malformed"\} 1\n/)
  t.match(text, /mecha_keys_http_request_seconds_count\{method="POST",route="\/v1\/verify",status="200"\} 2\n/)
  for (const name of [key.id, key.id.slice(4), 'canary', 'aviary', 'canaries-inc', plaintext_key]) t.equal(text.includes(name), false, 'no name in a label')
  await service.call('GET', `/v1/keys/${key.id}`, { token: await service.token() })
  await service.call('GET', '/no/such/path')
  const routes = [...(await service.call('GET', '/metrics')).text.matchAll(/route="([^"]*)"/g)].map((match) => match[1])
  t.ok(routes.includes('/v1/keys/:id') && routes.includes('none'))
})

t.test('the contract is served', async (t) => {
  const service = await startService(t)
  t.match((await service.call('GET', '/openapi.json')).body, { openapi: '3.1.0', paths: { '/v1/keys': {}, '/v1/verify': {} } })
})

t.test('a body that may be left out is left out where it is empty, whatever its type is called', async (t) => {
  const service = await startService(t, { MAX_ACTIVE_KEYS_PER_MECHA: '100' })
  await service.app.listen({ port: 0, host: '127.0.0.1' })
  const { port } = service.app.server.address() as AddressInfo
  const token = await service.token()
  const send = async (path: string, type: string, body: string | ReadableStream = '') => {
    const response = await fetch(`http://127.0.0.1:${port}${path}`, { method: 'POST', headers: { 'authorization': `Bearer ${token}`, 'content-type': type }, body, duplex: 'half' })
    return { status: response.status, body: (await response.json()) as { code?: string; errors?: object[] } }
  }
  const noChunks = () => new ReadableStream({ start: (stream) => stream.close() })
  const gateway = async () => (await service.call('POST', '/v1/gateways', { token, body: { name: 'edge' } })).body.gateway.id as string
  const key = async () => (await service.issue()).key.id as string
  const routes: [path: () => Promise<string>, status: number][] = [
    [async () => `/v1/keys/${await key()}/revoke`, 200],
    [async () => `/v1/keys/${await key()}/rotate`, 201],
    [async () => `/v1/gateways/${await gateway()}/revoke`, 200],
    [async () => (await key(), '/v1/mechas/sales%5Eacmecorp/revoke-keys'), 200],
  ]
  const types = ['application/json', 'application/json; charset=utf-8', 'application/x-www-form-urlencoded', 'text/plain;charset=UTF-8', 'application/octet-stream']
  for (const [freshPath, status] of routes) {
    for (const type of types) t.equal((await send(await freshPath(), type)).status, status, type)
    t.equal((await send(await freshPath(), 'application/json', noChunks())).status, status, 'in no chunks')
    const path = await freshPath()
    t.match(await send(path, 'application/json', 'null'), { status: 400, body: { code: 'invalid_request', errors: [{ field: 'body', rule: 'type' }] } }, 'null is no object, and the contract asks for one')
    t.match(await send(path, 'text/plain', '{}'), { status: 415, body: { code: 'unsupported_media_type' } })
    t.match(await send(path, 'application/json', ' '), { status: 400, body: { code: 'malformed_body' } })
  }
  t.match(await send('/nowhere', 'text/plain', 'x'), { status: 404 })
  t.match(await service.call('POST', '/v1/verify', { token: await service.gateway(), body: '', headers: { 'content-type': 'application/json' } }), { status: 400, body: { code: 'invalid_request' } }, 'one that is needed is missed')
})

t.test('the address in the audit trail is the peer\'s, and a forwarded one only from a proxy that is trusted', async (t) => {
  const service = await startService(t)
  const trusting = await startService(t, { TRUST_PROXY: '127.0.0.1', ROOT_SECRETS: service.config.ROOT_SECRETS![0]! }, service.database)
  for (const one of [service, trusting])
    await one.call('POST', '/v1/keys', { token: await one.token(), body: { mecha: 'a^b' }, headers: { 'x-forwarded-for': '203.0.113.9' } })
  const { body } = await service.call('GET', '/v1/events', { token: await service.token() })
  t.same(body.events.map((event: any) => event.address), ['127.0.0.1', '203.0.113.9'])
})

/** Sends bytes as they are and resolves to all that came back. */
async function raw(service: Service, ...parts: string[]): Promise<string> {
  const { port } = service.app.server.address() as AddressInfo
  const socket = connect(port, '127.0.0.1')
  let answer = ''
  socket.on('data', (chunk) => (answer += String(chunk))).on('error', () => {})
  for (const part of parts) socket.write(part)
  await once(socket, 'close')
  return answer
}

t.test('what is no HTTP, too large or too slow is answered as a problem and closed', async (t) => {
  const service = await startService(t, { REQUEST_TIMEOUT: '1s' })
  await service.app.listen({ port: 0, host: '127.0.0.1' })
  t.match(await raw(service, 'NONSENSE\r\n\r\n'), /^HTTP\/1.1 400 .*application\/problem\+json.*"code":"invalid_request"/s)
  t.match(await raw(service, `GET /livez HTTP/1.1\r\nHost: x\r\nX-Big: ${'x'.repeat(20_000)}\r\n\r\n`), /^HTTP\/1.1 431 .*"code":"headers_too_large"/s)
  t.match(await raw(service, 'POST /v1/verify HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n'), /^HTTP\/1.1 408 .*"code":"request_timeout"/s)
  t.match(await raw(service, 'GET /%zz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n'), /^HTTP\/1.1 400 .*"code":"invalid_request"/s)
  t.match(await raw(service, `GET /v1/keys/${'x'.repeat(300)} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n`), /^HTTP\/1.1 414 .*"code":"uri_too_long"/s)
})
