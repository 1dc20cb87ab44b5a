/** Races of what a gateway holds against what becomes of it: on a real service, over real connections, with real processes. */

import { sql } from 'kysely'
import t, { type Test } from 'tap'
import { freePort } from '../../src/db/embedded/free-port.js'
import { createDatabase } from '../helpers/database.js'
import { eventually } from '../helpers/eventually.js'
import { listen } from '../helpers/events.js'
import { drip, held, isFromMemory, isHeld, outcome, replicaOf, serve, split, startGateway, verifierFor } from '../helpers/gateway.js'
import { start } from '../helpers/process.js'
import { testEnvironment } from '../helpers/service.js'
import { layWire } from '../helpers/wire.js'

const BOUND = 1500

t.test('a revocation reaches a gateway that holds the key, and so does every other change', async (t) => {
  const served = await serve(t)
  const { service } = served
  const verifier = verifierFor(t, served)
  const token = await service.token()
  const changes: [string, (id: string) => Promise<unknown>, string][] = [
    ['revoke', (id) => service.call('POST', `/v1/keys/${id}/revoke`, { token }), 'revoked'],
    ['disable', (id) => service.call('PATCH', `/v1/keys/${id}`, { token, body: { enabled: false } }), 'disabled'],
    ['end', () => sql`UPDATE keys SET expires_at = now() WHERE kind = 'mecha' AND revoked_at IS NULL AND enabled`.execute(service.database.db), 'expired'],
    ['re-point', () => sql`UPDATE keys SET hash = (SELECT hash FROM keys WHERE kind = 'gateway' LIMIT 1) WHERE kind = 'mecha' AND revoked_at IS NULL AND enabled AND expires_at IS NULL`.execute(service.database.db), 'unknown'],
  ]
  for (const [what, change, code] of changes) {
    const { key, plaintext_key } = await service.issue()
    await held(verifier, plaintext_key)
    await change(key.id)
    await eventually(async () => (await outcome(verifier, plaintext_key)) !== 'valid')
    t.equal(await outcome(verifier, plaintext_key), code, what)
    t.ok(verifier.isFresh(), 'by being told, and not by the bound')
  }
})

t.test('a revocation that is told while an answer is on its way is not overtaken by that answer', async (t) => {
  const { service, wire, verifier, one, other } = await answersOnAWire(t)

  const isAnswered = wire.hold()
  const verdict = outcome(verifier, one.plaintext_key)
  await isAnswered
  const token = await service.token()
  for (const { key } of [one, other]) await service.call('POST', `/v1/keys/${key.id}/revoke`, { token })
  // What is told of the second was told of the first.
  await eventually(() => !isHeld(verifier, other.plaintext_key))
  wire.release()
  t.equal(await verdict, 'revoked')
  t.equal(await outcome(verifier, one.plaintext_key), 'revoked')
})

t.test('who asks after a change was told does not join a request from before', async (t) => {
  const { service, wire, proxy, verifier, one, other } = await answersOnAWire(t)
  let isTold = false
  verifier.watch(other.key.id, () => (isTold = true))
  const isAnswered = wire.hold()
  const first = outcome(verifier, one.plaintext_key)
  await isAnswered
  const joining = outcome(verifier, one.plaintext_key)
  await service.call('POST', `/v1/keys/${other.key.id}/revoke`, { token: await service.token() })
  await eventually(() => isTold)
  const asked = proxy.counts.verify
  const second = outcome(verifier, one.plaintext_key)
  await eventually(() => proxy.counts.verify > asked)
  wire.release()
  t.same(await Promise.all([first, joining, second]), ['valid', 'valid', 'valid'])
  t.equal(proxy.counts.verify, asked + 1)
})

t.test('an answer of a replica that is behind the stream is not held: nothing would be told of it again', async (t) => {
  const database = await createDatabase(t)
  const wire = await layWire(t, database.runtime)
  const served = await serve(t, {}, database)
  const behind = await replicaOf(t, served, { REVOCATION_MAX_STALENESS: '1m', DATABASE_DIRECT_URL: wire.through(database.runtime) })
  const proxy = await split(t, behind.url, served.url)
  const verifier = verifierFor(t, { ...served, url: proxy.url })
  const { key, plaintext_key } = await served.service.issue()
  await held(verifier, plaintext_key)
  // The other replica hears nothing more, and by its own bound still answers.
  wire.silence()
  await sql`UPDATE keys SET revoked_at = now(), revoked_by = 'test' WHERE kind = 'mecha'`.execute(database.db)
  await eventually(() => !isHeld(verifier, plaintext_key))
  for (let i = 0; i < 20; i++) {
    t.equal(await outcome(verifier, plaintext_key), 'valid', 'by the word of the replica that is behind')
    t.notOk(await isFromMemory(verifier, plaintext_key))
  }
  // What was asked for after the change, long after: its knowledge is as old as ever.
  await eventually(async () => (await served.service.call('GET', `/v1/keys/${key.id}`, { token: await served.service.token() })).body.propagation.replicas >= 1)
  t.notOk(await isFromMemory(verifier, plaintext_key))
  wire.restore()
  wire.cut()
  wire.restore()
  await eventually(async () => (await outcome(verifier, plaintext_key)) === 'revoked')
})

for (const [how, lose] of [['is cut', 'cut'], ['falls silent', 'silence']] as const)
  t.test(`when the way to the service ${how}, keys are vouched for up to the bound and unavailable after it`, async (t) => {
    const served = await serve(t)
    const wire = await layWire(t, served.url)
    const url = wire.through(served.url).replace(/\/$/, '')
    const verifier = verifierFor(t, { ...served, url }, { maxStalenessMs: BOUND, timeoutMs: 300 })
    const { key, plaintext_key } = await served.service.issue()
    await held(verifier, plaintext_key)
    const at = performance.now()
    wire[lose]()
    t.ok(isHeld(verifier, plaintext_key), 'from memory at first')
    // Its effect is known nowhere but in the database.
    await served.service.call('POST', `/v1/keys/${key.id}/revoke`, { token: await served.service.token() })
    let last = at
    await eventually(async () => {
      const asked = performance.now()
      const isValid = (await outcome(verifier, plaintext_key)) === 'valid'
      if (isValid) last = asked
      return !isValid
    })
    t.ok(last - at <= BOUND, `it was last valid ${Math.round(last - at)} ms after the last word, of ${BOUND}`)
    t.equal(await outcome(verifier, plaintext_key), 'service_unreachable', 'and neither valid nor invalid after that')
    t.notOk(verifier.isFresh())
    wire.restore()
    await eventually(async () => (await outcome(verifier, plaintext_key)) !== 'service_unreachable')
    t.equal(await outcome(verifier, plaintext_key), 'revoked')
    await eventually(() => verifier.isFresh())
    t.equal(await outcome(verifier, plaintext_key), 'revoked')
  })

t.test('with the stream alone away, past the bound the service is asked each time', async (t) => {
  const served = await serve(t)
  const wire = await layWire(t, served.url)
  const proxy = await split(t, served.url, wire.through(served.url))
  const verifier = verifierFor(t, { ...served, url: proxy.url }, { maxStalenessMs: BOUND })
  const { key, plaintext_key } = await served.service.issue()
  await held(verifier, plaintext_key)
  wire.cut()
  await eventually(() => !verifier.isFresh())
  t.equal(await outcome(verifier, plaintext_key), 'valid')
  t.notOk(await isFromMemory(verifier, plaintext_key))
  await served.service.call('POST', `/v1/keys/${key.id}/revoke`, { token: await served.service.token() })
  t.equal(await outcome(verifier, plaintext_key), 'revoked', 'and a revocation counts at once')
})

t.test('what is missed while the stream is away is told when it is back, before anything is vouched for', async (t) => {
  const served = await serve(t)
  const { service } = served
  const wire = await layWire(t, served.url)
  const proxy = await split(t, served.url, wire.through(served.url))
  const verifier = verifierFor(t, { ...served, url: proxy.url }, { maxStalenessMs: 60_000 })
  const [gone, kept] = [await service.issue(), await service.issue()]
  for (const { plaintext_key } of [gone, kept]) await held(verifier, plaintext_key)
  wire.cut()
  await service.call('POST', `/v1/keys/${gone.key.id}/revoke`, { token: await service.token() })
  t.ok(isHeld(verifier, gone.plaintext_key), 'within the bound it is not known yet')
  wire.restore()
  await eventually(async () => (await outcome(verifier, gone.plaintext_key)) === 'revoked')
  t.ok(isHeld(verifier, kept.plaintext_key), 'and what did not change is still held')
})

t.test('after the feed of the service itself was lost, everything is asked about anew', async (t) => {
  const database = await createDatabase(t)
  const wire = await layWire(t, database.runtime)
  const served = await serve(t, { DATABASE_DIRECT_URL: wire.through(database.runtime) }, database)
  const proxy = await split(t, served.url, served.url)
  const verifier = verifierFor(t, { ...served, url: proxy.url }, { maxStalenessMs: 60_000 })
  const [gone, kept] = [await served.service.issue(), await served.service.issue()]
  for (const { plaintext_key } of [gone, kept]) await held(verifier, plaintext_key)
  wire.cut()
  await sql`UPDATE keys SET revoked_at = now(), revoked_by = 'test' WHERE created_at = (SELECT min(created_at) FROM keys WHERE kind = 'mecha')`.execute(database.db)
  wire.restore()
  await eventually(async () => (await outcome(verifier, gone.plaintext_key)) === 'revoked')
  await held(verifier, kept.plaintext_key)
})

t.test('a gateway whose own credential is revoked is vouched for by nobody', async (t) => {
  const served = await serve(t)
  const { service } = served
  const lost: any[] = []
  const verifier = verifierFor(t, served, { maxStalenessMs: BOUND, onStreamLost: (error) => lost.push(error) })
  const { plaintext_key } = await service.issue()
  await held(verifier, plaintext_key)
  const token = await service.token()
  const { body } = await service.call('GET', '/v1/gateways', { token })
  await service.call('POST', `/v1/gateways/${body.gateways[0].id}/revoke`, { token })
  await eventually(async () => (await outcome(verifier, plaintext_key)) !== 'valid')
  t.equal(await outcome(verifier, plaintext_key), 'credential_refused')
  await eventually(() => lost.some(({ code }) => code === 'credential_refused') || lost.length > 0)
})

t.test('word that comes later and later, though it never stops to come, vouches for nothing that is past the bound', async (t) => {
  const served = await serve(t, { REVOCATION_MAX_STALENESS: '1s' })
  // The service speaks each quarter of a second.
  const slow = await drip(t, served.url, 700)
  const proxy = await split(t, served.url, slow.url)
  const verifier = verifierFor(t, { ...served, url: proxy.url }, { maxStalenessMs: 4000 })
  const { key, plaintext_key } = await served.service.issue()
  await held(verifier, plaintext_key)
  const streams = proxy.counts.other
  // For as long as three drops take: at the bound itself, each drop is new enough for a moment.
  let drops = slow.drops()
  await eventually(() => {
    if (verifier.isFresh()) drops = slow.drops()
    return slow.drops() >= drops + 3
  })
  t.equal(proxy.counts.other, streams, 'and comes all the while, by the same stream')
  await served.service.call('POST', `/v1/keys/${key.id}/revoke`, { token: await served.service.token() })
  t.equal(await outcome(verifier, plaintext_key), 'revoked')
})

t.test('a gateway that was stopped for longer than the bound does not believe what waited for it meanwhile', async (t) => {
  const served = await serve(t)
  const wire = await layWire(t, served.url)
  const url = wire.through(served.url).replace(/\/$/, '')
  const gateway = startGateway(t, [url, served.credential, String(BOUND)])
  const { key, plaintext_key } = await served.service.issue()
  await eventually(async () => (await gateway.ask(plaintext_key)).wasHeld)

  gateway.signal('SIGSTOP')
  // Confirmations wait for it in its kernel, one after another. Then the way is lost, and it is told nothing more.
  const another = await listen(t, served.url, served.credential)
  await another.heard('confirmed', ({ confirmed_ms }) => confirmed_ms > BOUND)
  wire.silence()
  await served.service.call('POST', `/v1/keys/${key.id}/revoke`, { token: await served.service.token() })
  const told = Math.max(...another.of('confirmed').map(({ confirmed_ms }) => confirmed_ms))
  await another.heard('confirmed', ({ confirmed_ms }) => confirmed_ms > told + BOUND)
  gateway.signal('SIGCONT')
  const answer = gateway.ask(plaintext_key)
  t.match(await answer, { outcome: 'service_unreachable', isFresh: false }, 'they look as if they had come just now, and are as old as they are')
  wire.restore()
  await eventually(async () => (await gateway.ask(plaintext_key)).outcome !== 'service_unreachable')
  t.match(await gateway.ask(plaintext_key), { outcome: 'revoked' })
})

t.test('a service that is killed and started again is followed again, and what was revoked meanwhile counts', async (t) => {
  const served = await serve(t)
  const { service } = served
  const port = await freePort()
  const env = { ...testEnvironment(service.database), ROOT_SECRETS: service.config.ROOT_SECRETS!.join(), PLANES: 'runtime', PORT: String(port), REVOCATION_MAX_STALENESS: '2s' }
  const replica = start(t, ['serve'], { env })
  await replica.line(/listening at/)
  const url = `http://127.0.0.1:${port}`
  const verifier = verifierFor(t, { url, credential: served.credential }, { maxStalenessMs: 60_000 })
  const [gone, kept] = [await service.issue(), await service.issue()]
  for (const { plaintext_key } of [gone, kept]) await held(verifier, plaintext_key)
  replica.signal('SIGKILL')
  await replica.ended()
  await service.call('POST', `/v1/keys/${gone.key.id}/revoke`, { token: await service.token() })
  t.equal(await outcome(verifier, (await service.issue()).plaintext_key), 'service_unreachable')
  t.equal(await outcome(verifier, kept.plaintext_key), 'valid', 'what is held is vouched for within the bound')
  await start(t, ['serve'], { env }).line(/listening at/)
  await eventually(async () => (await outcome(verifier, gone.plaintext_key)) === 'revoked')
  t.equal(await outcome(verifier, kept.plaintext_key), 'valid')
})

/** A gateway whose questions go over a wire and whose stream does not, and two keys, the other one of which it holds. */
async function answersOnAWire(t: Test) {
  const served = await serve(t)
  const { service } = served
  const wire = await layWire(t, served.url)
  const proxy = await split(t, wire.through(served.url), served.url)
  const verifier = verifierFor(t, { ...served, url: proxy.url }, { timeoutMs: 20_000 })
  const [one, other] = [await service.issue(), await service.issue()]
  await held(verifier, other.plaintext_key)
  return { service, wire, proxy, verifier, one, other }
}
