/** Replicas as processes of their own. */

import { connect } from 'node:net'
import { text } from 'node:stream/consumers'
import t, { type Test } from 'tap'
import { createDatabase, type TestDatabase } from '../../helpers/database.js'
import { eventually } from '../../helpers/eventually.js'
import { start, type Running } from '../../helpers/process.js'
import { startService, testEnvironment, type Service } from '../../helpers/service.js'
import { layWire } from '../../helpers/wire.js'

t.test('a replica that was stopped for longer than the bound does not answer by what it knew', async (t) => {
  const database = await createDatabase(t)
  const wire = await layWire(t, database.runtime)
  const { control, gateway, replica, url } = await withReplica(t, { REVOCATION_MAX_STALENESS: '1s', DATABASE_DIRECT_URL: wire.through(database.runtime) }, database)
  const { key, plaintext_key } = await control.issue()
  const ask = () => request(url, gateway, plaintext_key)
  t.match(await ask(), /"valid":true/)
  t.match(await ask(), /"valid":true/, 'from memory')

  replica.signal('SIGSTOP')
  // On its way while nobody is there to take it.
  const waiting = ask()
  const { body } = await control.call('POST', `/v1/keys/${key.id}/revoke`, { token: await control.token(), headers: { prefer: 'wait=10' } })
  t.match(body.propagation, { replicas: 0, confirmed: 0 }, 'a replica that is silent for as long does not count')
  // Nothing tells it when it goes on, but the clock.
  wire.silence()
  replica.signal('SIGCONT')
  t.match(await waiting, /"code":"revoked"/)
  t.match(await ask(), /"code":"revoked"/)
})

t.test('a replica that ends takes itself out of the count, and one that is killed drops out', async (t) => {
  const { control, replica } = await withReplica(t, { REVOCATION_MAX_STALENESS: '1s' })
  const token = await control.token()
  const revoked = async () => {
    const { key } = await control.issue()
    return (await control.call('POST', `/v1/keys/${key.id}/revoke`, { token, headers: { prefer: 'wait=10' } })).body.propagation
  }
  t.match(await revoked(), { replicas: 1, confirmed: 1 })
  replica.signal('SIGTERM')
  await replica.ended()
  t.match(await revoked(), { replicas: 0, confirmed: 0 })
  const another = await startReplica(t, control, { REVOCATION_MAX_STALENESS: '1s' })
  await eventually(async () => (await revoked()).replicas === 1)
  another.replica.signal('SIGKILL')
  await another.replica.ended()
  t.match(await revoked(), { replicas: 0, confirmed: 0 })
})

t.test('a replica under the runtime role alone serves no operator, and does all that a gateway needs', async (t) => {
  const { control, gateway, url } = await withReplica(t, {})
  const { key, plaintext_key } = await control.issue()
  t.match(await request(url, gateway, plaintext_key), /"valid":true/)
  const answer = await fetch(`${url}/v1/keys`, { headers: { authorization: `Bearer ${await control.token()}` } })
  t.equal(answer.status, 404)
  t.match((await control.call('GET', `/v1/keys/${key.id}`, { token: await control.token() })).body, { first_used_at: /Z$/ })
})

/** The control plane in this process, and a replica of the runtime plane in another. */
async function withReplica(t: Test, environment: Record<string, string>, database?: TestDatabase) {
  const control = await startService(t, { ...environment, PLANES: 'control' }, database ?? (await createDatabase(t)))
  const gateway = await control.gateway()
  const { replica, url } = await startReplica(t, control, environment)
  const { key } = await control.issue()
  await control.call('POST', `/v1/keys/${key.id}/revoke`, { token: await control.token() })
  const look = async () => (await control.call('GET', `/v1/keys/${key.id}`, { token: await control.token() })).body.propagation
  await eventually(async () => (await look()).replicas === 1)
  return { control, gateway, replica, url }
}

async function startReplica(t: Test, { config, database }: Service, environment: Record<string, string>): Promise<{ replica: Running; url: string }> {
  const { DATABASE_URL: _, BUILTIN_ISSUER: __, BUILTIN_ISSUER_KEY: ___, ...runtime } = testEnvironment(database)
  const env = { ...runtime, ROOT_SECRETS: config.ROOT_SECRETS!.join(), PLANES: 'runtime', PORT: '0', ...environment }
  const replica = start(t, ['serve'], { env })
  const [, url] = await replica.line(/listening at (http:\/\/127\.0\.0\.1:\d+)/)
  return { replica, url: url! }
}

/** A verify over a connection of its own: what is answered, headers and all. */
function request(url: string, gateway: string, key: string): Promise<string> {
  const { hostname, port } = new URL(url)
  const body = JSON.stringify({ key })
  const socket = connect(Number(port), hostname)
  socket.write(`POST /v1/verify HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer ${gateway}\r\nContent-Type: application/json\r\nContent-Length: ${body.length}\r\n\r\n${body}`)
  return text(socket)
}
