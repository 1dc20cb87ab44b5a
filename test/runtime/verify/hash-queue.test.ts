/** What waits for argon2 is bounded, and leaves when its caller does. */

import { connect, type AddressInfo, type Socket } from 'node:net'
import { randomBytes } from 'node:crypto'
import t, { type Test } from 'tap'
import { createHasher } from '../../../src/credentials/hash-queue.js'
import { findPepper } from '../../../src/credentials/hash.js'
import { newId } from '../../../src/credentials/id.js'
import { deriveRoot } from '../../../src/credentials/roots.js'
import { createDatabase, type TestDatabase } from '../../helpers/database.js'
import { eventually } from '../../helpers/eventually.js'
import { fresh, startService, type Answer, type Service } from '../../helpers/service.js'
import { layWire } from '../../helpers/wire.js'

/** Slow enough for a queue to form. */
const SLOW = { HASH_PROFILE: 'owasp', MAX_ACTIVE_KEYS_PER_MECHA: '1000' }

t.test('what waits for argon2 leaves when its caller does, and takes nobody\'s place', async (t) => {
  const root = deriveRoot(randomBytes(32).toString('hex'))
  const input = { id: newId(), subject: 'sales^acmecorp', secret: 'x'.repeat(43) }
  let done = 0
  const hasher = createHasher({ profile: 'owasp', version: async () => 2, queueSize: 60, onDone: () => done++ })
  const { hash, pepper_root } = await hasher.hash(input, root)
  const pepper = findPepper(pepper_root, [root])!
  const callers = Array.from({ length: 60 }, () => new AbortController())
  const results = callers.map(({ signal }) => hasher.verify(hash, input, pepper, signal))
  const waiting = hasher.waiting()
  t.ok(waiting > 30, `${waiting} wait`)
  for (const caller of callers) caller.abort()
  t.equal(hasher.waiting(), 0)
  const outcomes = await Promise.allSettled(results)
  t.equal(outcomes.filter(({ status }) => status === 'rejected').length, waiting)
  t.equal(done - 1, callers.length - waiting, 'what nobody waits for is not computed')
  await t.rejects(hasher.verify(hash, input, pepper, callers[0]!.signal), 'nor is what nobody waited for to begin with')
  t.equal(await hasher.verify(hash, input, pepper), true)
})

t.test('a key whose caller hangs up while it is read is not hashed', async (t) => {
  const database = await createDatabase(t)
  const wire = await layWire(t, database.runtime)
  const { service, gateway, keys } = await withKeys(t, 10, { DATABASE_DIRECT_URL: database.runtime }, { ...database, runtime: wire.through(database.runtime) })
  await service.app.listen({ host: '127.0.0.1', port: 0 })
  const before = await metric(service, 'mecha_keys_argon2_seconds_count{operation="verify"}')
  const isRead = wire.hold()
  const sockets = keys.map((key) => send(service, gateway, key))
  await isRead
  await eventually(async () => (await metric(service, 'mecha_keys_reads_waiting')) === keys.length)
  for (const socket of sockets) socket.destroy()
  await eventually(async () => (await connections(service)) === 0)
  wire.release()
  await eventually(async () => (await metric(service, 'mecha_keys_reads_waiting')) === 0)
  t.equal(await metric(service, 'mecha_keys_argon2_seconds_count{operation="verify"}'), before)
  t.match(await service.verify(keys[0]!, {}, gateway), { valid: true })
})

t.test('a full queue is said to be full, and nothing that was admitted is lost', async (t) => {
  const { service, gateway, keys } = await withKeys(t, 40, { ...SLOW, QUEUE_SIZE: '2' })
  const answers = await Promise.all(keys.map((key) => service.call('POST', '/v1/verify', { token: gateway, body: { key } })))
  const [served, shed] = [answers.filter(({ status }) => status === 200), answers.filter(({ status }) => status !== 200)]
  t.ok(served.length > 0 && shed.length > 0, `${served.length} served, ${shed.length} shed`)
  for (const { body } of served) t.equal(body.valid, true)
  const refused = await service.call('POST', '/v1/verify', { body: {} })
  const names = ({ headers }: Answer) => Object.keys(headers).filter((name) => name !== 'www-authenticate' && name !== 'retry-after').sort()
  for (const answer of shed) {
    t.match(answer, { status: 503, headers: { 'retry-after': '1', 'cache-control': 'no-store', 'content-type': refused.headers['content-type'] }, body: { type: '/errors/overloaded', status: 503, code: 'overloaded' } })
    t.same(names(answer), names(refused), 'as every other problem is answered')
    t.match(service.logs(), new RegExp(`"request_id":"${String(answer.headers['x-request-id'])}".*"status":503.*"code":"overloaded"`))
  }
  t.equal(await metric(service, 'mecha_keys_refusals_total{code="overloaded"}'), shed.length)
  for (const key of keys) t.match(await service.verify(key, {}, gateway), { valid: true })
})

/** Keys that the service has never seen, and a gateway that it knows. */
async function withKeys(t: Test, count: number, environment: Record<string, string>, database?: TestDatabase) {
  const service = await startService(t, environment, database)
  const gateway = await service.gateway()
  const keys: string[] = []
  while (keys.length < count) keys.push((await service.issue()).plaintext_key)
  await fresh(service)
  await service.verify('', {}, gateway)
  return { service, gateway, keys }
}

function send({ app }: Service, gateway: string, key: string): Socket {
  const { port } = app.server.address() as AddressInfo
  const body = JSON.stringify({ key })
  const socket = connect(port, '127.0.0.1').on('error', () => {})
  socket.write(`POST /v1/verify HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer ${gateway}\r\nContent-Type: application/json\r\nContent-Length: ${body.length}\r\n\r\n${body}`)
  return socket
}

function connections({ app }: Service): Promise<number> {
  return new Promise((resolve, reject) => app.server.getConnections((error, count) => (error ? reject(error) : resolve(count))))
}

async function metric(service: Service, name: string): Promise<number> {
  const { text } = await service.call('GET', '/metrics')
  return Number(text.split('\n').find((line) => line.startsWith(`${name} `))?.slice(name.length) ?? 0)
}
