/** Connections as they are: raw sockets on which requests are sent ahead, broken off, or never finished. */

import { once } from 'node:events'
import { connect, type AddressInfo } from 'node:net'
import t, { type Test } from 'tap'
import { emptyDatabase } from '../helpers/database.js'
import { eventually } from '../helpers/eventually.js'
import { costs } from '../helpers/metrics.js'
import { fresh, startService, type Service } from '../helpers/service.js'
import { layWire } from '../helpers/wire.js'

t.test('a connection that is lost with a thousand requests on it stops nobody else', async (t) => {
  const service = await listening(t)
  const token = await service.token()
  for (let round = 0; round < 3; round++) {
    const client = await open(t, service)
    client.send(form('/v1/revoke-token', 'token=nonsense') + get('/v1/keys').repeat(1000))
    setTimeout(() => client.reset(), 85)
    await client.closed
  }
  t.equal((await service.call('GET', '/v1/keys', { token })).status, 200)
})

t.test('what waits for its turn on a lost connection is not counted any more: operators', async (t) => {
  const { service, wire, token } = await held(t, { QUEUE_SIZE: '10' })
  const client = await open(t, service)
  const isHeld = wire.hold()
  client.send(get('/readyz') + get('/v1/keys', token).repeat(10))
  await isHeld
  await eventually(async () => (await service.call('GET', '/v1/keys')).status === 503)
  client.reset()
  await eventually(async () => (await service.call('GET', '/v1/keys')).status === 401)
  t.pass('all ten places are free, and the database still holds back its answers')
})

t.test('what waits for its turn on a lost connection is not counted any more: nonces', async (t) => {
  const { service, wire, token } = await held(t, { QUEUE_SIZE: '10' })
  const gateway = await service.gateway()
  const { key, plaintext_key } = await service.issue()
  await service.verify(plaintext_key, {}, gateway)
  const client = await open(t, service)
  const isHeld = wire.hold()
  const body = JSON.stringify({ key_id: key.id, nonce: 'once-and-no-more-than-that', expires_at: new Date(Date.now() + 60_000).toISOString() })
  client.send(get('/v1/keys', token) + post('/v1/nonces', gateway, body).repeat(10))
  await isHeld
  const anybody = () => service.call('POST', '/v1/nonces', { body: {} })
  await eventually(async () => (await anybody()).status === 503)
  client.reset()
  await eventually(async () => (await anybody()).status === 401)
  t.pass('all ten places are free')
})

t.test('what waits for its turn on a lost connection is not counted any more: streams of changes', async (t) => {
  const { service, wire, token } = await held(t, { CHANGE_STREAMS_MAX: '2', DATABASE_DIRECT_URL: (await emptyDatabase()).runtime })
  await fresh(service)
  const gateway = await service.gateway()
  await service.verify('nonsense', {}, gateway)
  const client = await open(t, service)
  const isHeld = wire.hold()
  client.send(get('/v1/keys', token) + get('/v1/changes', gateway))
  await isHeld
  const streams = async () => Number(/^mecha_keys_change_streams (\d+)$/m.exec((await service.call('GET', '/metrics')).text)![1])
  await eventually(async () => (await streams()) === 1)
  client.reset()
  await eventually(async () => (await streams()) === 0)
  t.pass('its place is free')
})

t.test('who waits for a turn on a lost connection waits no more, and costs no argon2', async (t) => {
  const { service, wire, token } = await held(t, { DATABASE_DIRECT_URL: (await emptyDatabase()).runtime })
  await fresh(service)
  const gateway = await service.gateway()
  await service.verify('nonsense', {}, gateway)
  const { plaintext_key } = await service.issue()
  const before = await costs(service)
  const client = await open(t, service)
  const isHeld = wire.hold()
  client.send(get('/v1/keys', token) + post('/v1/verify', gateway, JSON.stringify({ key: plaintext_key })))
  await isHeld
  await eventually(async () => (await readsWaiting(service)) === 1)
  client.reset()
  await connectionsEnded(service)
  wire.release()
  await eventually(async () => (await readsWaiting(service)) === 0)
  t.match(await service.verify('nonsense', {}, gateway), { valid: false })
  t.equal((await costs(service)).argon2, before.argon2)
})

t.test('a place is free once the answer is made, whether or not it is read', async (t) => {
  const { service, wire, token } = await held(t, { QUEUE_SIZE: '11' })
  const client = await open(t, service)
  const isHeld = wire.hold()
  client.send(get('/v1/keys', token) + get('/v1/keys').repeat(10))
  await isHeld
  t.equal((await service.call('GET', '/v1/keys')).status, 401, 'ten answers wait for the first, and hold no place')
  wire.release()
  await eventually(() => statuses(client.text()).length === 11)
  t.same(statuses(client.text()), [200, ...Array<number>(10).fill(401)])
})

t.test('sixteen requests may wait for one, in their order, and one more ends the connection', async (t) => {
  const { service, wire, token } = await held(t)
  const patient = await open(t, service)
  const greedy = await open(t, service)
  const isHeld = wire.hold()
  const rest = Array.from({ length: 16 }, (_, i) => get(`/nowhere/${i}`, undefined, `X-Request-Id: n${i}`)).join('')
  patient.send(get('/v1/keys', token) + rest)
  greedy.send(get('/v1/keys', token) + rest + get('/livez'))
  await isHeld
  await greedy.closed
  t.equal(greedy.text(), '')
  wire.release()
  await eventually(() => statuses(patient.text()).length === 17)
  t.same(statuses(patient.text()), [200, ...Array<number>(16).fill(404)])
  t.same([...patient.text().matchAll(/^x-request-id: n(\d+)\r$/gm)].map((match) => Number(match[1])), Array.from({ length: 16 }, (_, i) => i))
  patient.send(get('/livez').repeat(5))
  await eventually(() => statuses(patient.text()).length === 22)
  t.pass('what has been answered does not count')
})

t.test('what is no HTTP is refused after everything before it has been answered', async (t) => {
  const { service, wire, token } = await held(t)
  const client = await open(t, service)
  const isHeld = wire.hold()
  client.send(get('/livez') + get('/v1/keys', token) + get('/nowhere') + 'NONSENSE\r\n\r\n')
  await isHeld
  wire.release()
  await client.closed
  t.same(statuses(client.text()), [200, 200, 404, 400])
})

t.test('no answer that is being written is written into', async (t) => {
  const service = await listening(t, { REVOCATION_MAX_STALENESS: '1s' })
  await fresh(service)
  const gateway = await service.gateway()
  const client = await open(t, service)
  client.send(get('/v1/changes', gateway) + 'NONSENSE\r\n\r\n')
  const confirmations = () => client.text().split('event: confirmed').length - 1
  await eventually(() => confirmations() > 0)
  const sofar = confirmations()
  client.send('more of it\r\n\r\n')
  await eventually(() => confirmations() > sofar + 1)
  t.same(statuses(client.text()), [200])
})

t.test('a request that was answered before its body had arrived is not answered again', async (t) => {
  const service = await listening(t, { REQUEST_TIMEOUT: '1s' })
  for (const rest of ['', 'zz\r\n']) {
    const client = await open(t, service)
    client.send('POST /v1/keys HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n')
    await eventually(() => client.text().includes('"code":"unauthenticated"'))
    client.send(rest)
    await client.closed
    t.same(statuses(client.text()), [401], rest ? 'what follows is no HTTP' : 'nothing follows')
  }
})

t.test('a request whose body is no HTTP is refused, and a client that does not hang up is let go', async (t) => {
  const service = await listening(t)
  const client = await open(t, service, { allowHalfOpen: true })
  client.send(`POST /v1/verify HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer ${await service.gateway()}\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n`)
  await connectionsEnded(service)
  t.same(statuses(client.text()), [400])
})

/** A service that listens. */
async function listening(t: Test, environment: Record<string, string> = {}): Promise<Service> {
  const service = await startService(t, environment)
  await service.app.listen({ port: 0, host: '127.0.0.1' })
  return service
}

/** The same, and a wire to its database on which answers can be kept back. Both planes have asked it something. */
async function held(t: Test, environment: Record<string, string> = {}) {
  const { control, runtime } = await emptyDatabase()
  const wire = await layWire(t, control)
  const service = await listening(t, { DATABASE_URL: wire.through(control), RUNTIME_DATABASE_URL: wire.through(runtime), DATABASE_TIMEOUT: '30s', ...environment })
  t.teardown(() => wire.release())
  const token = await service.token()
  await service.call('GET', '/v1/keys', { token })
  return { service, wire, token }
}

async function open(t: Test, { app }: Service, options: { allowHalfOpen?: boolean } = {}) {
  const socket = connect({ port: (app.server.address() as AddressInfo).port, host: '127.0.0.1', ...options })
  t.teardown(() => socket.destroy())
  const closed = once(socket, 'close')
  let text = ''
  socket.setEncoding('latin1').on('data', (chunk: string) => (text += chunk)).on('error', () => {})
  await once(socket, 'connect')
  return {
    closed,
    text: () => text,
    send: (bytes: string) => void socket.write(bytes, 'latin1'),
    reset: () => void socket.resetAndDestroy(),
  }
}

function get(path: string, token?: string, ...headers: string[]): string {
  return ['GET ' + path + ' HTTP/1.1', 'Host: x', ...(token ? [`Authorization: Bearer ${token}`] : []), ...headers, '', ''].join('\r\n')
}

function post(path: string, token: string, body: string): string {
  return `POST ${path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer ${token}\r\nContent-Type: application/json\r\nContent-Length: ${body.length}\r\n\r\n${body}`
}

function form(path: string, body: string): string {
  return `POST ${path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: ${body.length}\r\n\r\n${body}`
}

/** The statuses of the answers, in their order. */
function statuses(text: string): number[] {
  return [...text.matchAll(/HTTP\/1\.1 (\d{3}) /g)].map((match) => Number(match[1]))
}

/** Resolves when the service has no connection any more. */
function connectionsEnded({ app }: Service): Promise<void> {
  return eventually(() => new Promise((resolve) => app.server.getConnections((_error, count) => resolve(count === 0))))
}

async function readsWaiting(service: Service): Promise<number> {
  return Number(/^mecha_keys_reads_waiting (\d+)$/m.exec((await service.call('GET', '/metrics')).text)![1])
}
