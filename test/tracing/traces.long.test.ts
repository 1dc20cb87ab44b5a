import { once } from 'node:events'
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { connect } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { signOperatorToken } from '../../src/control/operators/builtin-issuer.js'
import { SCOPES } from '../../src/control/operators/scopes.js'
import { loadConfig } from '../../src/config.js'
import { createDatabase } from '../helpers/database.js'
import { eventually } from '../helpers/eventually.js'
import { ACCESS_TOKEN, EXCHANGE } from '../helpers/oauth.js'
import { startReceiver, type ReceivedSpan } from '../helpers/otlp.js'
import { start, type Running } from '../helpers/process.js'
import { found, processSecrets } from '../helpers/secrets.js'
import { startService, testEnvironment } from '../helpers/service.js'

/** A trace of the caller's. */
const CALLER = { trace: '4bf92f3577b34da6a3ce929d0e0e4736', span: '00f067aa0ba902b7' }
const CANARY = 'a-canary-in-a-query'
/** Later than any test lasts: what is sent before is sent at the end. */
const AT_THE_END = '600000'

t.test('a whole life is traced, and no key, no token and no handle is in what is sent', async (t) => {
  const receiver = await startReceiver(t)
  const authorization = 'Bearer of-the-collector'
  const { service, url, config, operatorToken } = await deployed(t, {
    OTEL_EXPORTER_OTLP_ENDPOINT: `${receiver.url}/`,
    OTEL_EXPORTER_OTLP_HEADERS: `authorization=${encodeURIComponent(authorization)}`,
    OTEL_EXPORTER_OTLP_COMPRESSION: 'gzip',
    OTEL_RESOURCE_ATTRIBUTES: 'deployment.environment.name=a%20test,service.name=other',
    OTEL_SERVICE_NAME: 'keys-of-a-test',
    OTEL_BSP_SCHEDULE_DELAY: AT_THE_END,
  })
  const operator = { authorization: `Bearer ${operatorToken}` }
  const { body: gateway } = await call(url, 'POST', '/v1/gateways', operator, { name: 'edge-of-a-name' })
  const asked = { authorization: `Bearer ${gateway.plaintext_key}` }
  const issued = await call(url, 'POST', '/v1/keys', { ...operator, 'x-request-id': 'the-issue' }, { mecha: 'sales^acmecorp', name: 'a-name-of-a-key', metadata: { note: 'a-note-of-a-key' } })
  const { plaintext_key: key, key: { id } } = issued.body
  const traced = { ...asked, traceparent: `00-${CALLER.trace}-${CALLER.span}-01`, tracestate: `vendor=${key}`, baggage: `key=${key}`, 'x-request-id': 'the-verify' }
  t.match((await call(url, 'POST', '/v1/verify', traced, { key })).body, { valid: true })
  t.match((await call(url, 'POST', '/v1/verify', asked, { key, mecha: 'sales^acmecorp' })).body, { valid: true })
  t.match((await call(url, 'POST', '/v1/verify', asked, { key: `${key}x` })).body, { valid: false })
  t.equal((await call(url, 'POST', '/v1/introspect', asked, new URLSearchParams({ token: key }))).status, 200)
  const exchanged = await call(url, 'POST', '/v1/token', {}, new URLSearchParams({ grant_type: EXCHANGE, subject_token: key, subject_token_type: ACCESS_TOKEN }))
  const { access_token: jwt } = exchanged.body
  t.match((await call(url, 'POST', '/v1/introspect', asked, new URLSearchParams({ token: jwt }))).body, { active: true })
  t.equal((await call(url, 'GET', `/v1/authz/${key}?mecha=sales%5Eacmecorp&scope=${CANARY}`, { 'x-gateway-authorization': asked.authorization, 'x-mecha-key': key })).status, 403)
  t.equal((await call(url, 'GET', `/v1/keys?mecha=sales^acmecorp&limit=3`, operator)).status, 200)
  t.equal((await call(url, 'GET', `/v1/keys/${key}?${CANARY}`, operator)).status, 400)
  t.equal((await call(url, 'GET', `/${key}?${CANARY}=${key}`, { 'x-request-id': key })).status, 404)
  t.equal((await call(url, 'POST', '/v1/verify', { authorization: `Bearer ${key}`, traceparent: key }, { key })).status, 401)
  t.equal((await call(url, 'POST', '/v1/verify', asked, { [key]: key })).status, 400)
  for (const path of ['/livez', '/readyz', '/metrics']) t.equal((await call(url, 'GET', path)).status, 200)
  const revoked = await call(url, 'POST', `/v1/keys/${id}/revoke`, { ...operator, 'x-request-id': 'the-revocation' }, { reason: 'a-reason-of-a-revocation' })
  t.match(revoked, { status: 200, body: { propagation: { complete: true } } })
  t.match((await call(url, 'POST', '/v1/verify', asked, { key })).body, { valid: false, code: 'revoked' })
  const last = await halfARequest(t, url, asked.authorization, { key })
  t.equal(receiver.requests.length, 0, 'nobody waits for the collector')
  service.signal('SIGTERM')
  await service.line(/"msg":"draining"/)
  await last.finish()
  const { code, stdout } = await service.ended()
  t.equal(code, 0)

  const spans = receiver.spans()
  const one = (name: string, requestId: string) => spans.find(({ name: of, attributes }) => of === name && attributes['mecha_keys.request_id'] === requestId)!
  const childrenOf = ({ id: parent }: ReceivedSpan) => spans.filter((span) => span.parent === parent)
  t.match(receiver.requests[0], { url: '/v1/traces', headers: { authorization, 'content-type': 'application/x-protobuf', 'content-encoding': 'gzip' } })
  t.match(receiver.resource(), { 'service.name': 'keys-of-a-test', 'service.version': /^\d/, 'deployment.environment.name': 'a test', 'telemetry.sdk.language': 'nodejs' })

  const issue = one('POST /v1/keys', 'the-issue')
  t.match(issue, { kind: 'server', parent: '', attributes: { 'http.request.method': 'POST', 'http.route': '/v1/keys', 'http.response.status_code': 201, 'mecha_keys.plane': 'control' } })
  t.same(childrenOf(issue).map(({ name }) => name).sort(), ['SELECT', 'argon2 hash'], 'an issue is one statement')
  const verify = one('POST /v1/verify', 'the-verify')
  t.match(verify, { trace: CALLER.trace, parent: CALLER.span, state: '', attributes: { 'mecha_keys.plane': 'runtime', 'http.response.status_code': 200 } }, "the caller's trace goes on")
  const hashing = childrenOf(verify).find(({ name }) => name === 'argon2 verify')!
  t.match(hashing, { trace: CALLER.trace, kind: 'internal', attributes: { 'mecha_keys.queue_wait_ms': Number } })
  t.ok(hashing.seconds > 0 && hashing.seconds <= verify.seconds + 0.002, 'it took a part of the time')
  t.match(childrenOf(verify).find(({ name }) => name === 'SELECT'), { kind: 'client', attributes: { 'db.system.name': 'postgresql', 'db.operation.name': 'SELECT' } })
  t.match(childrenOf(one('POST /v1/keys/:id/revoke', 'the-revocation')).find(({ name }) => name === 'wait for replicas'), { attributes: { 'mecha_keys.complete': true } })
  t.match(spans.find(({ name }) => name === 'feed poll'), { parent: '', kind: 'client' })
  t.match(spans.find(({ name, attributes }) => name === 'GET /v1/authz' && attributes['http.route'] === '/v1/authz'), { attributes: { 'mecha_keys.code': 'insufficient_scope' } })
  t.match(spans.find(({ name }) => name === 'GET'), { attributes: { 'http.response.status_code': 404, 'mecha_keys.code': 'route_not_found' } }, 'where there is no route, there is no name of one')
  t.equal(spans.filter(({ name }) => name === 'POST /v1/verify').length, 7, 'the one that was under way at the end included')
  t.same(spans.filter(({ name }) => /livez|readyz|metrics/.test(name)), [])
  t.equal(new Set(spans.map(({ id }) => id)).size, spans.length)

  const lines = stdout.split('\n').filter((line) => line.includes('"msg":"request"')).map((line) => JSON.parse(line) as Record<string, unknown>)
  t.match(lines.find((line) => line['request_id'] === 'the-verify'), { trace_id: CALLER.trace, status: 200 }, 'a log line names the trace')
  t.match(lines.find((line) => line['request_id'] === 'the-issue'), { trace_id: issue.trace })

  const places = { 'what was sent': receiver.bytes(), attributes: JSON.stringify(spans) }
  t.ok(places['what was sent'].includes('the-verify'), 'the search looks at what it should')
  const secretsOf = (name: string, secret: string) => [[name, Buffer.from(secret)], [`secret of ${name}`, Buffer.from(secret.slice(-60, -17))]]
  const secrets = Object.fromEntries([
    ...secretsOf('the key', key), ...secretsOf('the gateway', gateway.plaintext_key),
    ...Object.entries({ 'operator token': operatorToken, 'exchanged JWT': jwt, 'signature of it': jwt.split('.')[2], 'id of the key': id, 'id of the gateway': gateway.gateway.id }).map(([name, text]) => [name, Buffer.from(text)]),
    ...['sales^acmecorp', 'sales%5Eacmecorp', 'acmecorp', CANARY, 'limit=3', 'edge-of-a-name', 'a-name-of-a-key', 'a-note-of-a-key', 'a-reason-of-a-revocation', 'alice', '$argon2id$', '127.0.0.1'].map((text) => [text, Buffer.from(text)]),
  ]) as Record<string, Buffer>
  t.same(found({ ...secrets, ...processSecrets(config) }, { ...places, 'what was sent': places['what was sent'].replaceAll(/"host":"[^"]*"/g, '') }), [])
})

t.test('without the setting, nothing of OpenTelemetry is loaded and nothing is sent', async (t) => {
  const folder = mkdtempSync(join(tmpdir(), 'mecha-keys-traces-'))
  t.teardown(() => rmSync(folder, { recursive: true }))
  // Packages of OpenTelemetry are CommonJS: what was loaded of them is in its cache, however it was asked for.
  const preload = join(folder, 'tell-what-was-loaded.cjs')
  writeFileSync(preload, "process.on('exit', () => require('node:fs').writeFileSync(process.env.LOADED, Object.keys(require.cache).join('\\n')))")
  const loadedBy = async (environment: Record<string, string>, run: number) => {
    const loaded = join(folder, String(run))
    const { service, url } = await deployed(t, { ...environment, NODE_OPTIONS: `--require=${preload}`, LOADED: loaded })
    t.equal((await call(url, 'POST', '/v1/verify', { traceparent: `00-${CALLER.trace}-${CALLER.span}-01` }, { key: 'x' })).status, 401)
    service.signal('SIGTERM')
    const { code, stdout } = await service.ended()
    t.equal(code, 0)
    t.equal(stdout.includes(CALLER.trace), 'OTEL_EXPORTER_OTLP_ENDPOINT' in environment && environment['OTEL_SDK_DISABLED'] !== 'true', 'a log line names a trace where there is one')
    return new Set(readFileSync(loaded, 'utf8').split('\n').flatMap((file) => /\/(@opentelemetry\/[^/]+)/.exec(file)?.[1] ?? []))
  }
  const receiver = await startReceiver(t)
  const others = { OTEL_EXPORTER_OTLP_TRACES_ENDPOINT: receiver.url, OTEL_TRACES_SAMPLER: 'always_on', OTEL_SERVICE_NAME: 'x', OTEL_EXPORTER_OTLP_PROTOCOL: 'grpc', OTEL_BSP_SCHEDULE_DELAY: '1' }
  // prom-client loads the interface, which does nothing by itself, for its exemplars.
  const disabled = { OTEL_EXPORTER_OTLP_ENDPOINT: receiver.url, OTEL_SDK_DISABLED: 'true', OTEL_BSP_SCHEDULE_DELAY: '1' }
  for (const loaded of await Promise.all([others, disabled].map(loadedBy))) t.same([...loaded], ['@opentelemetry/api'])
  t.equal(receiver.requests.length, 0)
  const on = await loadedBy({ OTEL_EXPORTER_OTLP_ENDPOINT: receiver.url, OTEL_BSP_SCHEDULE_DELAY: '1' }, 3)
  t.ok(on.has('@opentelemetry/sdk-trace') && on.has('@opentelemetry/exporter-trace-otlp-proto'), 'and with it they are')
  t.ok(receiver.requests.length > 0)
})

t.test('a collector that fails disturbs nothing, and is told of once', async (t) => {
  const silent = await startReceiver(t, null)
  const refusing = await startReceiver(t, 400)
  const collectors = { 'never answers': silent.url, 'refuses': refusing.url, 'is not there': 'http://127.0.0.1:1', 'has a name that nobody knows': 'http://collector.invalid:4318' }
  await Promise.all(Object.entries(collectors).map(async ([what, endpoint]) => {
    const { service, url } = await deployed(t, { OTEL_EXPORTER_OTLP_ENDPOINT: endpoint, OTEL_EXPORTER_OTLP_TIMEOUT: '400', OTEL_BSP_SCHEDULE_DELAY: '20', OTEL_BSP_MAX_QUEUE_SIZE: '5' })
    const answers = await Promise.all(Array.from({ length: 50 }, () => call(url, 'POST', '/v1/verify', {}, { key: 'x' })))
    t.same([...new Set(answers.map(({ status }) => status))], [401], `one that ${what}`)
    await service.line(/traces could not be sent/)
    t.equal((await call(url, 'GET', '/livez')).status, 200)
    service.signal('SIGTERM')
    const { code, stdout } = await service.ended()
    t.equal(code, 0, 'it ends in order')
    t.equal(stdout.split('traces could not be sent').length, 2, 'one line, however many were not')
  }))
})

t.test('a collector that never answers holds up the end for two seconds at most', async (t) => {
  const receiver = await startReceiver(t, null)
  const { service, url } = await deployed(t, { OTEL_EXPORTER_OTLP_ENDPOINT: receiver.url, OTEL_BSP_SCHEDULE_DELAY: AT_THE_END, OTEL_EXPORTER_OTLP_TIMEOUT: '60000', SHUTDOWN_TIMEOUT: '60s' })
  await call(url, 'POST', '/v1/verify', {}, { key: 'x' })
  service.signal('SIGTERM')
  const at = performance.now()
  const { code, stdout } = await service.ended()
  t.equal(code, 0)
  t.notMatch(stdout, /ending unfinished/)
  t.ok(receiver.requests.length > 0, 'it was asked')
  t.ok(performance.now() - at < 30_000, 'and not waited for as long as an export may take')
})

t.test('what is traced is what the sampler says, and what the caller did', async (t) => {
  const tracedWith = async (environment: Record<string, string>) => {
    const receiver = await startReceiver(t)
    const service = await startService(t, { OTEL_EXPORTER_OTLP_ENDPOINT: 'http://127.0.0.1:1', OTEL_EXPORTER_OTLP_TRACES_ENDPOINT: `${receiver.url}/somewhere/else`, OTEL_BSP_SCHEDULE_DELAY: AT_THE_END, ...environment })
    const caller = (flags: string) => ({ traceparent: `00-${CALLER.trace}-${CALLER.span}-${flags}` })
    for (const headers of [{}, caller('01'), caller('00'), { traceparent: `00-${'0'.repeat(32)}-${CALLER.span}-01` }]) await service.call('POST', '/v1/verify', { headers, body: { key: 'x' } })
    await service.app.close()
    for (const { url } of receiver.requests) t.equal(url, '/somewhere/else', 'sent where it is said that traces go')
    return receiver.spans().filter(({ name }) => name === 'POST /v1/verify').map(({ trace }) => (trace === CALLER.trace ? 'caller' : 'own'))
  }
  t.same(await tracedWith({}), ['own', 'caller', 'own'], 'what the caller does not trace is not traced')
  t.same(await tracedWith({ OTEL_TRACES_SAMPLER: 'always_on' }), ['own', 'caller', 'caller', 'own'])
  t.same(await tracedWith({ OTEL_TRACES_SAMPLER: 'parentbased_traceidratio', OTEL_TRACES_SAMPLER_ARG: '0' }), ['caller'])
  t.same(await tracedWith({ OTEL_TRACES_SAMPLER: 'traceidratio', OTEL_TRACES_SAMPLER_ARG: '0.0' }), [])
  t.same(await tracedWith({ OTEL_TRACES_SAMPLER: 'parentbased_always_off' }), ['caller'])
  t.same(await tracedWith({ OTEL_TRACES_SAMPLER: 'always_off' }), [])
})

t.test('what is asked on the authz listener is traced as well', async (t) => {
  const receiver = await startReceiver(t)
  const { authz } = await startService(t, { OTEL_EXPORTER_OTLP_ENDPOINT: receiver.url, OTEL_BSP_SCHEDULE_DELAY: '10', AUTHZ_LISTEN: '127.0.0.1:0' })
  t.equal((await call(await authz!.listen({ host: '127.0.0.1', port: 0 }), 'GET', '/v1/authz/x?y=z')).status, 401)
  await eventually(async () => receiver.spans().some(({ name }) => name === 'GET /v1/authz'))
  t.match(receiver.spans().find(({ name }) => name === 'GET /v1/authz'), { attributes: { 'mecha_keys.plane': 'runtime', 'http.response.status_code': 401 } })
})

/** The program itself, with a database of its own. */
async function deployed(t: Test, environment: Record<string, string>): Promise<{ service: Running; url: string; config: ReturnType<typeof loadConfig>; operatorToken: string }> {
  const env = testEnvironment(await createDatabase(t), environment)
  const service = start(t, ['serve'], { env: { ...env, PORT: '0' } })
  const url = (await service.line(/listening at (http:\/\/[\d.:]+)/))[1]!
  await eventually(async () => (await fetch(`${url}/readyz`)).status === 200)
  const config = loadConfig(env)
  return { service, url, config, operatorToken: await signOperatorToken(config, { org: 'acme', scopes: SCOPES, subject: 'alice', ttlSeconds: 600 }) }
}

async function call(url: string, method: string, path: string, headers: Record<string, string> = {}, body?: object): Promise<{ status: number; body: any }> {
  const isForm = body instanceof URLSearchParams
  const answer = await fetch(url + path, { method, headers: { ...(body && !isForm && { 'content-type': 'application/json' }), ...headers }, ...(body && { body: isForm ? body : JSON.stringify(body) }) })
  const text = await answer.text()
  return { status: answer.status, body: /json/.test(answer.headers.get('content-type') ?? '') ? JSON.parse(text) : text }
}

/** A verify of which the service has the headers and a part of the body. */
async function halfARequest(t: Test, url: string, authorization: string, body: object) {
  const text = JSON.stringify(body)
  const socket = connect(Number(new URL(url).port), '127.0.0.1')
  t.teardown(() => socket.destroy())
  await once(socket, 'connect')
  let answer = ''
  socket.setEncoding('utf8').on('data', (chunk: string) => (answer += chunk))
  const closed = once(socket, 'close')
  // What is answered to the first request says that the beginning of the second one has arrived with it.
  socket.write(`GET /livez HTTP/1.1\r\nHost: x\r\n\r\nPOST /v1/verify HTTP/1.1\r\nHost: x\r\nAuthorization: ${authorization}\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: ${text.length}\r\n\r\n${text.slice(0, 5)}`)
  while (!answer.includes('"alive":true')) await once(socket, 'data')
  return {
    async finish() {
      socket.write(text.slice(5))
      await closed
    },
  }
}
