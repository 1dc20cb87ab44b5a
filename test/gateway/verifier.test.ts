/** The gateway SDK's verifier, in front of a real service. */

import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { createVerifier, VerifierUnavailable } from '../../src/gateway/index.js'
import { eventually } from '../helpers/eventually.js'
import { held, isFromMemory, outcome, serve, split, startGateway, verifierFor } from '../helpers/gateway.js'
import { layWire } from '../helpers/wire.js'

t.test('a verifier says what the service says, when it asks and when it remembers', async (t) => {
  const served = await serve(t)
  const { service } = served
  const verifier = verifierFor(t, served)
  const token = await service.token()
  const keys = await Promise.all(['good', 'revoked', 'disabled', 'expired'].map((name) => service.issue({ name, scopes: ['orders:read'], metadata: { region: ['eu'] } })))
  const [good, revoked, disabled, expired] = keys.map(({ plaintext_key }) => plaintext_key) as [string, string, string, string]
  await service.call('POST', `/v1/keys/${keys[1]!.key.id}/revoke`, { token })
  await service.call('PATCH', `/v1/keys/${keys[2]!.key.id}`, { token, body: { enabled: false } })
  await service.database.db.updateTable('keys').set({ expires_at: new Date('2020-01-01') }).where('name', '=', 'expired').execute()
  const elsewhere = await service.issue({ mecha: 'sales^other' }, { org: 'other' })
  const cases: [string, object][] = [
    [good, {}], [`secret-token:${good}`, {}], [good, { mecha: 'sales^acmecorp', scopes: ['orders:read'] }], [good, { mecha: 'buyer^acmecorp' }],
    [good, { scopes: ['orders:write'] }], [good, { mecha: 'buyer^acmecorp', scopes: ['orders:write'] }],
    [revoked, { mecha: 'buyer^acmecorp' }], [disabled, {}], [expired, {}], [elsewhere.plaintext_key, {}],
    [good.slice(0, -1), {}], [good.slice(0, -1) + (good.endsWith('0') ? '1' : '0'), {}], ['', {}], ['x', {}], ['x'.repeat(5000), {}],
  ]
  for (const round of ['asked', 'remembered']) {
    for (const [key, demand] of cases) t.same(await verifier.verify(key, demand), await service.verify(key, demand), `${round}: ${JSON.stringify(demand)}`)
    await held(verifier, good)
  }
  const verdict = verifier.verify(good)
  t.notOk(verdict instanceof Promise, 'what is held is answered without a promise')
  t.equal(verdict, verifier.verify(`secret-token:${good}`), 'with the same object each time')
  t.throws(() => ((verdict as any).metadata.region[0] = 'us'), TypeError, 'that nobody can change')
  for (const key of [revoked, disabled, expired, elsewhere.plaintext_key]) t.notOk(await isFromMemory(verifier, key), 'what is not good is asked about each time')
})

t.test('a key that looks like one that is held is not taken for it', async (t) => {
  const served = await serve(t)
  const verifier = verifierFor(t, served)
  const { plaintext_key: key } = await served.service.issue()
  await held(verifier, key)
  const forged = key.slice(0, -60) + (key.at(-60) === 'x' ? 'y' : 'x') + key.slice(-59)
  t.equal(await outcome(verifier, forged), 'malformed')
  t.ok(await isFromMemory(verifier, key), 'and does not push it out')
})

t.test('many who ask about one key at once are one request, whatever they demand', async (t) => {
  const served = await serve(t)
  const proxy = await split(t, served.url, served.url)
  const verifier = verifierFor(t, { ...served, url: proxy.url })
  const { plaintext_key: key } = await served.service.issue()
  await held(verifier, (await served.service.issue()).plaintext_key)
  const before = proxy.counts.verify
  const verdicts = await Promise.all([{}, { mecha: 'sales^acmecorp' }, { mecha: 'boss^acmecorp' }, { scopes: ['x'] }].map(async (demand) => verifier.verify(key, demand)))
  t.match(verdicts, [{ valid: true }, { valid: true }, { code: 'mecha_mismatch' }, { code: 'insufficient_scope' }])
  t.equal(proxy.counts.verify - before, 1)
})

t.test('as many keys are held as may be, and the one not asked for longest goes first', async (t) => {
  const served = await serve(t)
  const verifier = verifierFor(t, served, { cacheMaxKeys: 2 })
  const keys = []
  for (let i = 0; i < 3; i++) keys.push((await served.service.issue()).plaintext_key)
  const [first, second, third] = keys as [string, string, string]
  await held(verifier, first)
  await held(verifier, second)
  await verifier.verify(first)
  await held(verifier, third)
  t.ok(await isFromMemory(verifier, first))
  t.notOk(await isFromMemory(verifier, second))
})

t.test('no more than allowed are under way, no more than allowed wait, and none waits longer than it may', async (t) => {
  const served = await serve(t)
  const wire = await layWire(t, served.url)
  const proxy = await split(t, wire.through(served.url), served.url)
  const verifier = verifierFor(t, { ...served, url: proxy.url }, { maxConcurrent: 2, maxWaiting: 3, timeoutMs: 500 })
  const keys: string[] = []
  for (let i = 0; i < 7; i++) keys.push((await served.service.issue()).plaintext_key)
  await verifier.verify(keys[6]!)
  const before = proxy.counts.verify
  const isHeld = wire.hold()
  const outcomes = keys.slice(0, 6).map((key) => outcome(verifier, key))
  t.equal(await outcomes[5], 'overloaded', 'one too many, and it need not wait to be told')
  await isHeld
  t.equal(proxy.counts.verify - before, 2)
  t.same(await Promise.all(outcomes), [...Array<string>(5).fill('service_unreachable'), 'overloaded'])
  wire.release()
  await eventually(async () => (await outcome(verifier, keys[0]!)) === 'valid')
})

t.test('where the service cannot say, neither can the verifier: it never makes up a refusal', async (t) => {
  const served = await serve(t)
  const { service, url, credential } = served
  const { plaintext_key: key } = await service.issue()
  const lost: any[] = []
  const stranger = verifierFor(t, { url, credential: key }, { onStreamLost: (error) => lost.push(error) })
  t.equal(await outcome(stranger, key), 'credential_refused', 'a refused gateway is no refused key')
  await eventually(() => lost.length > 0)
  t.match(lost, [{ code: 'credential_refused' }])
  t.notOk(stranger.isFresh())
  const nobody = verifierFor(t, { url: 'http://127.0.0.1:1', credential })
  t.equal(await outcome(nobody, key), 'service_unreachable')
  const wrong = verifierFor(t, { url: `${url}/docs`, credential })
  t.equal(await outcome(wrong, key), 'service_unavailable', 'another server')
  const verifier = verifierFor(t, served)
  const { plaintext_key: unseen } = await service.issue()
  await held(verifier, key)
  await service.database.db.schema.alterTable('keys').renameTo('elsewhere').execute()
  t.equal(await outcome(verifier, unseen), 'service_unavailable', 'a service in trouble')
  t.equal(await outcome(verifier, key), 'valid', 'what is held is vouched for all the same')
  await service.database.db.schema.alterTable('elsewhere').renameTo('keys').execute()
  t.equal(await outcome(verifier, unseen), 'valid')
})

t.test('a verifier that was closed says so, and lets go of everything', async (t) => {
  const served = await serve(t)
  const verifier = createVerifier(served)
  const { key, plaintext_key } = await served.service.issue()
  await held(verifier, plaintext_key)
  const ends: any[] = []
  verifier.watch(key.id, (end) => ends.push(end))
  await verifier.close()
  t.same(ends, [{ reason: 'closed', leftMs: 0 }])
  t.equal(await outcome(verifier, plaintext_key), 'closed')
  t.throws(() => verifier.verify(plaintext_key), VerifierUnavailable)
  await eventually(async () => (await served.service.call('GET', '/metrics')).text.includes('mecha_keys_change_streams 0'))
})

t.test('the memory of a gateway that holds keys has no key in it', async (t) => {
  const served = await serve(t)
  const gateway = startGateway(t, [served.url, served.credential, '10000'])
  const keys: string[] = []
  for (let i = 0; i < 5; i++) keys.push((await served.service.issue({ name: 'kept' })).plaintext_key)
  for (const key of keys) await eventually(async () => (await gateway.ask(key)).wasHeld)
  // What was asked last may still be on its way out.
  for (let i = 0; i < 20; i++) await gateway.ask(`x${i}`)
  const file = join(t.testdir(), 'heap')
  await gateway.ask(`heap ${file}`)
  const heap = readFileSync(file, 'latin1')
  for (const key of keys) t.notOk(heap.includes(key.slice(-60, -17)), 'nor the secret of one')
  t.ok(heap.includes(served.credential), 'what it has to remember is found')
})

t.test('options that are wrong are told at once, without their values', async (t) => {
  const good = { url: 'http://127.0.0.1:1', credential: 'mgw_x' }
  const wrong: [object, RegExp][] = [
    [{ url: 'nowhere' }, /^url /], [{ url: 'ftp://x' }, /^url /], [{ credential: '' }, /^credential /], [{ credential: 'mgw_x\n' }, /^credential /],
    [{ maxStalenessMs: 0 }, /^maxStalenessMs /], [{ timeoutMs: 1.5 }, /^timeoutMs /], [{ cacheMaxKeys: -1 }, /^cacheMaxKeys /],
    [{ maxConcurrent: 0 }, /^maxConcurrent /], [{ maxWaiting: -1 }, /^maxWaiting /], [{ clockToleranceMs: 400_001 }, /^clockToleranceMs /],
  ]
  for (const [options, message] of wrong) t.throws(() => createVerifier({ ...good, ...options }), { name: 'TypeError', message })
})

t.test('a key that comes to its end is not answered from memory, by the database\'s clock and no other', async (t) => {
  const served = await serve(t)
  const { service } = served
  const verifier = verifierFor(t, served)
  const { plaintext_key } = await service.issue()
  await service.database.db.updateTable('keys').set({ expires_at: new Date(Date.now() + 3000) }).where('kind', '=', 'mecha').execute()
  await held(verifier, plaintext_key)
  const { now } = Date
  t.teardown(() => (Date.now = now))
  // A clock of this machine that somebody has set back.
  Date.now = () => now() - 86_400_000
  await eventually(async () => (await outcome(verifier, plaintext_key)) !== 'valid')
  t.equal(await outcome(verifier, plaintext_key), 'expired')
  Date.now = now
  t.same(await service.verify(plaintext_key), { valid: false, code: 'expired' }, 'and not before the service says so')
})
