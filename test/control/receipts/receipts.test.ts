import { randomUUID } from 'node:crypto'
import { join } from 'node:path'
import { sql } from 'kysely'
import { Client } from 'pg'
import t, { type Test } from 'tap'
import { signOperatorToken } from '../../../src/control/operators/builtin-issuer.js'
import { SCOPES } from '../../../src/control/operators/scopes.js'
import { loadConfig } from '../../../src/config.js'
import { ReplicaWatch } from '../../../src/control/receipts/replicas.js'
import { applied, createDatabase, emptyDatabase } from '../../helpers/database.js'
import { eventually } from '../../helpers/eventually.js'
import { start } from '../../helpers/process.js'
import { fresh, startService, testEnvironment, type Service } from '../../helpers/service.js'
import { wallClock, withoutFaketime } from '../../helpers/wall-clock.js'
import { layWire, type Wire } from '../../helpers/wire.js'

t.test('a change is answered with how many replicas have applied it, and so is a look at a revoked key', async (t) => {
  const service = await startService(t)
  const token = await service.token()
  await applied(service.database)
  const all = { replicas: 1, confirmed: 1, complete: true }
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
  t.match(await revoke(hears.key.id), { headers: { 'preference-applied': 'wait=1' }, body: { status: 'revoked', propagation: { replicas: 2, confirmed: 1, complete: false } } })
  wire.cut()
  wire.restore()
  await eventually(async () => (await look(hears.key.id)).confirmed === 2)

  wire.silence()
  const { body } = await service.call('POST', `/v1/keys/${drops.key.id}/revoke`, { token, headers: { prefer: 'respond-async, wait=10' } })
  t.match(body.propagation, { replicas: 1, confirmed: 1, complete: true }, 'silent for as long as it may serve from memory, it does not count')
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
  t.match(body.propagation, { replicas: 2, confirmed: 1, complete: false })
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
  t.match(body.propagation, { replicas: 0, confirmed: 0, complete: false })
  wire.release()
  await wire.hold()
  t.match(await service.verify(plaintext_key, {}, gateway), { valid: false, code: 'revoked' })
  wire.release()
})

t.test('without a replica no receipt is complete, and there is nothing to wait for', async (t) => {
  const service = await startService(t, { PLANES: 'control' })
  const { key } = await service.issue()
  const { body } = await service.call('POST', `/v1/keys/${key.id}/revoke`, { token: await service.token(), headers: { prefer: 'wait=10' } })
  t.match(body.propagation, { replicas: 0, confirmed: 0, complete: false })
  t.ok(body.propagation.elapsed_ms < 9000)
})

t.test('a database\'s clock that steps takes no silent replica out of the count, and keeps none in it', async (t) => {
  const { service, wire } = await twoReplicas(t)
  const token = await service.token()
  const { db } = service.database
  const [early, late] = [await service.issue(), await service.issue()]
  const revoke = (id: string, wait: number) => service.call('POST', `/v1/keys/${id}/revoke`, { token, headers: { prefer: `wait=${wait}` } })
  wire.silence()
  // As if it had been written before the clock went forward by 12 seconds, and before it went back by an hour.
  await sql`UPDATE replicas SET seen_at = seen_at - interval '12 seconds'`.execute(db)
  t.match((await revoke(early.key.id, 1)).body.propagation, { replicas: 2, confirmed: 1, complete: false })
  await sql`UPDATE replicas SET seen_at = seen_at + interval '1 hour'`.execute(db)
  t.match((await revoke(late.key.id, 10)).body.propagation, { replicas: 1, confirmed: 1, complete: true })
})

t.test('each replica counts for its own bound', async (t) => {
  const database = await createDatabase(t)
  const wire = await layWire(t, database.runtime)
  const service = await startService(t, { REVOCATION_MAX_STALENESS: '1s' }, database)
  await startService(t, { REVOCATION_MAX_STALENESS: '5s', DATABASE_DIRECT_URL: wire.through(database.runtime) }, database)
  await eventually(async () => (await sql`SELECT FROM replicas`.execute(database.db)).rows.length === 2)
  const { key } = await service.issue()
  const token = await service.token()
  wire.silence()
  const revoke = (wait: number) => service.call('POST', `/v1/keys/${key.id}/revoke`, { token, headers: { prefer: `wait=${wait}` } })
  t.match((await revoke(3)).body.propagation, { replicas: 2, confirmed: 1, complete: false })
  t.match((await revoke(10)).body.propagation, { replicas: 1, confirmed: 1, complete: true })
})

t.test('a replica of another history is not in the count, and while it may be alive no receipt is complete', async (t) => {
  const service = await startService(t)
  const token = await service.token()
  await applied(service.database)
  const { key } = await service.issue()
  await sql`INSERT INTO replicas (id, snapshot, seen_at, history, bound_ms, beat) VALUES (${randomUUID()}, pg_current_snapshot(), now(), 'another one', 2000, 7)`.execute(service.database.db)
  const revoke = (wait: number) => service.call('POST', `/v1/keys/${key.id}/revoke`, { token, headers: { prefer: `wait=${wait}` } })
  t.match((await revoke(1)).body.propagation, { replicas: 1, confirmed: 1, complete: false })
  t.match((await revoke(10)).body.propagation, { replicas: 1, confirmed: 1, complete: true })
})

t.test('a replica whose row vanished may be alive for its bound, and one that said goodbye is not', async (t) => {
  const service = await startService(t, { REVOCATION_MAX_STALENESS: '2s' })
  const leaving = await startService(t, { REVOCATION_MAX_STALENESS: '30s' }, service.database)
  const token = await service.token()
  const { db } = service.database
  const [first, second] = [await service.issue(), await service.issue()]
  const revoke = (id: string, wait: number) => service.call('POST', `/v1/keys/${id}/revoke`, { token, headers: { prefer: `wait=${wait}` } })
  await eventually(async () => (await sql`SELECT FROM replicas`.execute(db)).rows.length === 2)
  t.match((await revoke(first.key.id, 10)).body.propagation, { replicas: 2, confirmed: 2, complete: true })
  await leaving.app.close()
  t.match((await revoke(second.key.id, 10)).body.propagation, { replicas: 1, confirmed: 1, complete: true })
  const gone = randomUUID()
  await sql`INSERT INTO replicas (id, snapshot, seen_at, history, bound_ms, beat) SELECT ${gone}, snapshot, seen_at, history, 1500, 1 FROM replicas`.execute(db)
  t.match((await revoke(first.key.id, 0)).body.propagation, { replicas: 2 })
  await sql`DELETE FROM replicas WHERE id = ${gone}`.execute(db)
  t.match((await revoke(first.key.id, 0)).body.propagation, { replicas: 1, confirmed: 1, complete: false })
  t.match((await revoke(first.key.id, 10)).body.propagation, { replicas: 1, confirmed: 1, complete: true })
})

t.test('what is silent is counted out by the smaller of two clocks', async (t) => {
  const watch = new ReplicaWatch(10_000)
  const row = { id: randomUUID(), history: 'this', bound_ms: 1000, mark: '1', unseen: [] }
  let [monotonic, wall] = [0, 0]
  t.intercept(performance, 'now', { value: () => 1e9 + monotonic })
  t.intercept(Date, 'now', { value: () => 1e12 + wall })
  const living = () => watch.take({ history: 'this', replicas: [row], farewells: [] }, watch.age()).replicas.length
  const pass = (ms: { monotonic: number; wall: number }) => ((monotonic += ms.monotonic), (wall += ms.wall))
  living()
  for (const [ms, alive] of [
    [{ monotonic: 0, wall: 0 }, 1],
    [{ monotonic: 10, wall: 3_600_000 }, 1],
    [{ monotonic: 5000, wall: -3_600_000 }, 1],
    [{ monotonic: 989, wall: 989 }, 1],
    [{ monotonic: 2, wall: 2 }, 0],
  ] as const) {
    pass(ms)
    t.equal(living(), alive, JSON.stringify(ms))
  }
})

t.test('one loop asks for all receipts that are open', async (t) => {
  const { service, wire } = await twoReplicas(t)
  const token = await service.token()
  const keys = []
  for (let n = 0; n < 30; n++) keys.push((await service.issue({ mecha: `m${n}^acmecorp` })).key.id)
  wire.silence()
  const queries = async () => Number(/mecha_keys_database_queries_total\{plane="control"\} (\d+)/.exec((await service.call('GET', '/metrics')).text)![1])
  const before = await queries()
  const answers = await Promise.all(keys.map((id) => service.call('POST', `/v1/keys/${id}/revoke`, { token, headers: { prefer: 'wait=2' } })))
  for (const { body } of answers) t.match(body.propagation, { complete: false })
  // A revocation takes some ten statements; 200 questions for each of 30 receipts would be 6,000.
  t.ok((await queries()) - before < 30 * 20 + 400, `${(await queries()) - before} statements`)
})

t.test('a replica that receipts did not wait for yet does not answer by what it polled before one', async (t) => {
  const database = await createDatabase(t)
  const first = await startService(t, {}, database)
  const gateway = await first.gateway()
  const { key, plaintext_key } = await first.issue()
  await fresh(first)
  // A row that is new waits for a lock, so that there is time between a first poll and its confirmation.
  await sql`CREATE FUNCTION wait_to_register() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
      IF NOT EXISTS (SELECT FROM replicas WHERE id = NEW.id) THEN PERFORM pg_advisory_xact_lock(42); END IF;
      RETURN NEW;
    END $$`.execute(database.db)
  await sql`CREATE TRIGGER wait_to_register BEFORE INSERT ON replicas FOR EACH ROW EXECUTE FUNCTION wait_to_register()`.execute(database.db)
  const admin = new Client({ connectionString: database.owner })
  await admin.connect()
  t.teardown(() => admin.end())
  await admin.query('SELECT pg_advisory_lock(42)')

  const wire = await layWire(t, database.runtime)
  const second = await startService(t, { ROOT_SECRETS: first.config.ROOT_SECRETS!.join(), DATABASE_DIRECT_URL: wire.through(database.runtime) }, database)
  await eventually(async () => (await admin.query("SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'advisory'")).rowCount === 1)
  t.match(await second.verify(plaintext_key, {}, gateway), { valid: true })
  const { body } = await first.call('POST', `/v1/keys/${key.id}/revoke`, { token: await first.token(), headers: { prefer: 'wait=10' } })
  t.match(body.propagation, { replicas: 1, confirmed: 1, complete: true }, 'without the second, which has no row yet')

  // It hears that its confirmation was written, and nothing more.
  const isWritten = wire.hold()
  await admin.query('SELECT pg_advisory_unlock(42)')
  await isWritten
  wire.release()
  await wire.hold()
  t.same(await second.verify(plaintext_key, {}, gateway), { valid: false, code: 'revoked' })
  wire.release()
})

t.test('a replica that is killed while a clock is an hour off counts for its bound, no less and no longer', { skip: withoutFaketime }, async (t) => {
  const BOUND_MS = 2000
  const database = await createDatabase(t)
  const environment = { ...testEnvironment(database), REVOCATION_MAX_STALENESS: `${BOUND_MS / 1000}s`, HOST: '127.0.0.1', PORT: '0' }
  const folder = t.testdir()
  const serve = async (planes: string) => {
    const clock = wallClock(join(folder, randomUUID()), 0)
    const process = start(t, ['serve'], { env: { ...environment, ...clock.environment, PLANES: planes } })
    const [, url] = await process.line(/listening at (http:\/\/[\d.:]+)/)
    const kill = async () => {
      process.signal('SIGKILL')
      await process.ended()
    }
    return { url: url!, clock, kill }
  }
  const token = await signOperatorToken(loadConfig(environment), { org: 'acme', scopes: SCOPES, subject: 'alice', ttlSeconds: 86_400 })
  const post = async (url: string, body: object, prefer = 'wait=10', by = token) => {
    const answer = await fetch(url, { method: 'POST', headers: { authorization: `Bearer ${by}`, 'content-type': 'application/json', prefer }, body: JSON.stringify(body) })
    return (await answer.json()) as any
  }
  const [counting, away] = [await serve('both'), await serve('runtime')]
  const { plaintext_key: gateway } = await post(`${counting.url}/v1/gateways`, { name: 'edge' })
  const issue = (): Promise<any> => post(`${counting.url}/v1/keys`, { mecha: 'sales^acmecorp' })
  const revoked = async (wait: number, key?: any) => (await post(`${counting.url}/v1/keys/${(key ?? (await issue())).key.id}/revoke`, {}, `wait=${wait}`)).propagation
  const ask = ({ url }: typeof away, { plaintext_key }: any) => post(`${url}/v1/verify`, { key: plaintext_key }, '', gateway)
  const isOfBoth = ({ replicas, confirmed, complete }: any) => replicas === 2 && confirmed === 2 && complete
  /** How long the one that was killed last has been silent, by the database's clock; it is the other one that wrote its row just now. */
  const silentMs = async () => (await sql<{ ms: number }>`SELECT extract(epoch FROM clock_timestamp() - seen_at)::float8 * 1000 AS ms FROM replicas ORDER BY seen_at DESC OFFSET 1 LIMIT 1`.execute(database.db)).rows[0]!.ms
  const isTrue = async (receipt: any) => {
    t.ok(receipt.confirmed < 2, 'the dead one is not confirmed')
    t.ok(!receipt.complete || (await silentMs()) >= BOUND_MS, 'and may be alive until the bound is over')
  }
  await eventually(async () => (await revoked(10)).replicas === 2)

  // One that lives on with its clock an hour back is counted, for longer than its bound, and tells the truth.
  away.clock.step(-3600)
  const key = await issue()
  t.match(await ask(away, key), { valid: true })
  let isCounted = true
  for (const end = performance.now() + BOUND_MS * 1.5; performance.now() < end; ) isCounted &&= isOfBoth(await revoked(10))
  t.ok(isCounted)
  t.ok(isOfBoth(await revoked(10, key)))
  t.same(await ask(away, key), { valid: false, code: 'revoked' })

  // Killed while it is back; and the clock of the process that counts goes back too while it waits.
  await away.kill()
  const waiting = revoked(10)
  await isTrue(await revoked(0))
  counting.clock.step(-3600)
  await isTrue(await revoked(0))
  const last = await waiting
  await isTrue(last)
  t.match(last, { replicas: 1, confirmed: 1, complete: true }, 'it is not waited for any longer')

  // Killed, and the clock of the process that counts goes forward by an hour.
  const another = await serve('runtime')
  await eventually(async () => isOfBoth(await revoked(10)))
  await another.kill()
  await isTrue(await revoked(0))
  counting.clock.step(0)
  for (let receipt = await revoked(0); ; receipt = await revoked(10)) {
    await isTrue(receipt)
    if (receipt.complete) break
  }
})
