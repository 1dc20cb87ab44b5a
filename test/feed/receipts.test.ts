import t, { type Test } from 'tap'
import { applied, createDatabase, emptyDatabase } from '../helpers/database.js'
import { fresh, startService, type Service } from '../helpers/service.js'
import { eventually } from '../helpers/eventually.js'
import { layWire, type Wire } from '../helpers/wire.js'

t.test('a change is answered with how many replicas have applied it, and so is a look at a revoked key', async (t) => {
  const service = await startService(t)
  const token = await service.token()
  await applied(service.database)
  const all = { replicas: 1, confirmed: 1 }
  const [{ key }, other, third] = [await service.issue(), await service.issue(), await service.issue()]
  const gateways = await service.call('POST', '/v1/gateways', { token, body: { name: 'edge' } })
  const post = (path: string, body: object) => service.call('POST', path, { token, body })
  t.match((await service.call('PATCH', `/v1/keys/${key.id}`, { token, body: { enabled: false } })).body.propagation, all)
  t.match((await post(`/v1/keys/${other.key.id}/rotate`, { overlap_seconds: 0 })).body.propagation, all)
  t.match((await post(`/v1/keys/${key.id}/revoke`, {})).body.propagation, all)
  t.match((await post('/v1/mechas/sales%5Eacmecorp/revoke-keys', {})).body.propagation, all)
  t.match((await post(`/v1/gateways/${gateways.body.gateway.id}/revoke`, {})).body.propagation, all)
  t.match((await service.call('GET', `/v1/keys/${third.key.id}`, { token })).body.propagation, all)
  const active = await service.issue()
  t.notOk('propagation' in (await service.call('GET', `/v1/keys/${active.key.id}`, { token })).body, 'nothing is to be told of a key that is not revoked')
})

t.test('a replica that hears nothing is not confirmed, until it hears again or drops out', async (t) => {
  const { service, wire } = await twoReplicas(t)
  const token = await service.token()
  const [hears, drops] = [await service.issue(), await service.issue()]
  const revoke = (id: string) => service.call('POST', `/v1/keys/${id}/revoke`, { token, headers: { prefer: 'wait=1' } })
  const look = async (id: string) => (await service.call('GET', `/v1/keys/${id}`, { token })).body.propagation

  wire.silence()
  t.match(await revoke(hears.key.id), { headers: { 'preference-applied': 'wait=1' }, body: { status: 'revoked', propagation: { replicas: 2, confirmed: 1 } } })
  wire.cut()
  wire.restore()
  await eventually(async () => (await look(hears.key.id)).confirmed === 2)

  wire.silence()
  const { body } = await service.call('POST', `/v1/keys/${drops.key.id}/revoke`, { token, headers: { prefer: 'respond-async, wait=10' } })
  t.match(body.propagation, { replicas: 1, confirmed: 1 }, 'silent for as long as it may serve from memory, it does not count')
  t.ok(body.propagation.elapsed_ms > 0)
})

t.test('of two transactions on one key, both have to be applied', async (t) => {
  const { service, wire } = await twoReplicas(t)
  const token = await service.token()
  const { key } = await service.issue()
  // What the second replica has seen stays what it is now, and counts as alive.
  wire.silence()
  await service.call('PATCH', `/v1/keys/${key.id}`, { token, body: { name: 'one' }, headers: { prefer: 'wait=0' } })
  const { body } = await service.call('POST', `/v1/keys/${key.id}/revoke`, { token, headers: { prefer: 'wait=1' } })
  t.match(body.propagation, { replicas: 2, confirmed: 1 })
})

t.test('how long to wait is a preference: what is no number is ignored, what is too long is cut', async (t) => {
  const service = await startService(t)
  const token = await service.token()
  for (const [prefer, applied] of [['wait=3', 'wait=3'], ['wait=99', 'wait=10'], ['foo; wait=5', 'wait=5'], ['Wait = "4"', 'wait=4'], ['wait=soon', undefined], ['await=3', undefined]] as const) {
    const { key } = await service.issue()
    const answer = await service.call('POST', `/v1/keys/${key.id}/revoke`, { token, headers: { prefer } })
    t.match({ status: answer.status, applied: answer.headers['preference-applied'] }, { status: 200, applied }, prefer)
  }
})

/** Two replicas of one database; the second one's feed goes over a wire. */
async function twoReplicas(t: Test): Promise<{ service: Service; wire: Wire }> {
  const database = await createDatabase(t)
  const wire = await layWire(t, database.runtime)
  const environment = { REVOCATION_MAX_STALENESS: '4s' }
  const service = await startService(t, environment, database)
  await startService(t, { ...environment, DATABASE_DIRECT_URL: wire.through(database.runtime) }, database)
  const token = await service.token()
  const { key } = await service.issue()
  await service.call('POST', `/v1/keys/${key.id}/revoke`, { token })
  await eventually(async () => (await service.call('GET', `/v1/keys/${key.id}`, { token })).body.propagation.replicas === 2)
  return { service, wire }
}

t.test('a replica that dropped out of a receipt does not answer from memory, whatever it is told late', async (t) => {
  const database = await emptyDatabase()
  const wire = await layWire(t, database.runtime)
  const service = await startService(t, { REVOCATION_MAX_STALENESS: '1s', DATABASE_DIRECT_URL: wire.through(database.runtime) })
  const { key, plaintext_key } = await service.issue()
  const gateway = await service.gateway()
  await fresh(service)
  t.match(await service.verify(plaintext_key, {}, gateway), { valid: true })
  // A poll has been answered, from before the revocation, and the answer is on its way.
  await wire.hold()
  const { body } = await service.call('POST', `/v1/keys/${key.id}/revoke`, { token: await service.token(), headers: { prefer: 'wait=10' } })
  t.match(body.propagation, { replicas: 0, confirmed: 0 })
  wire.release()
  await wire.hold()
  t.match(await service.verify(plaintext_key, {}, gateway), { valid: false, code: 'revoked' })
  wire.release()
})
