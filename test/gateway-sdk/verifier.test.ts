/** The gateway SDK's verifier, in front of a real service. */

import { once } from 'node:events'
import { readFileSync } from 'node:fs'
import { Agent, request, type IncomingMessage } from 'node:http'
import type { Socket } from 'node:net'
import { join } from 'node:path'
import { sql } from 'kysely'
import t from 'tap'
import { createVerifier, VerifierUnavailable, type StreamLost, type Valid, type VerifierState } from '../../src/gateway-sdk/index.js'
import { UsageReporter } from '../../src/gateway-sdk/usage.js'
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

t.test('the memory of a gateway after a whole life has no secret of a key in it, and its own credential', async (t) => {
  const served = await serve(t)
  const gateway = startGateway(t, [served.url, served.credential, '10000'])
  const { port } = await gateway.ask<{ port: number }>('listen')
  const keys: string[] = []
  for (let i = 0; i < 5; i++) keys.push((await served.service.issue({ name: 'kept' })).plaintext_key)
  for (const key of keys) await eventually(async () => (await gateway.ask(key)).wasHeld)
  // Requests over a connection that is kept, and sockets that were open, watched and asked about when the key changed.
  const agent = new Agent({ keepAlive: true })
  t.teardown(() => agent.destroy())
  const headersOf = (key: string) => ({ 'x-mecha-key': key })
  const watched = () => gateway.ask<VerifierState>('state').then((state) => state.watched)
  const sockets: Socket[] = []
  for (const key of keys) {
    const sent = request({ port, agent, headers: headersOf(key) }).end()
    const [response] = (await once(sent, 'response')) as [IncomingMessage]
    t.equal(response.statusCode, 200)
    await once(response.resume(), 'close')
    const [, socket] = (await once(request({ port, headers: { ...headersOf(key), connection: 'Upgrade', upgrade: 'test' } }).end(), 'upgrade')) as [unknown, Socket]
    sockets.push(socket.on('error', () => {}))
  }
  await eventually(async () => (await watched()) === keys.length)
  const { asked } = (await gateway.ask<VerifierState>('state')).counts
  await sql`UPDATE keys SET name = 'changed' WHERE kind = 'mecha'`.execute(served.service.database.db)
  await eventually(async () => (await gateway.ask<VerifierState>('state')).counts.asked >= asked + keys.length && (await watched()) === keys.length)
  for (const socket of sockets) socket.destroy()
  await eventually(async () => (await watched()) === 0)
  for (const key of keys) await eventually(async () => (await gateway.ask(key)).wasHeld)
  // What was asked last, or is waited for in vain, may still be on its way out.
  const file = join(t.testdir(), 'heap')
  let heap = ''
  await eventually(async () => {
    for (let i = 0; i < 20; i++) await gateway.ask(`x${i}`)
    await once(await once(request({ port, agent, headers: headersOf('x') }).end(), 'response').then(([response]) => (response as IncomingMessage).resume()), 'close')
    await gateway.ask(`heap ${file}`)
    heap = readFileSync(file, 'latin1')
    return !keys.some((key) => heap.includes(key.slice(-60, -17)))
  })
  for (const key of keys) t.notOk(heap.includes(key.slice(-60, -17)), 'nor the secret of one')
  const { strings } = JSON.parse(heap) as { strings: string[] }
  t.same(strings.filter((one) => one.includes(served.credential)), [served.credential], 'its credential is there once, as the option that it is')
})

t.test('a key that is answered from memory is reported as used, with the gateway that did, and at the end too', async (t) => {
  const served = await serve(t, { USAGE_FLUSH_INTERVAL: '1s' })
  const { service } = served
  const [busy, late, refused] = [await service.issue(), await service.issue(), await service.issue()]
  const reports: { key_id: string; used_at: string }[][] = []
  let isThere = true
  const proxy = await split(t, served.url, served.url, (path, body) => {
    if (path !== '/v1/usage') return
    reports.push((JSON.parse(body) as { uses: [] }).uses)
    return isThere
  })
  const verifier = createVerifier({ ...served, url: proxy.url, usageIntervalMs: 200 })
  t.teardown(() => verifier.close())
  for (const { plaintext_key } of [busy, late, refused]) await held(verifier, plaintext_key)
  const metadata = async ({ key }: typeof busy) => (await service.call('GET', `/v1/keys/${key.id}`, { token: await service.token() })).body
  await eventually(() => verifier.state().counts.usesReported >= 3)
  reports.length = 0
  verifier.verify(refused.plaintext_key, { mecha: 'boss^acmecorp' })
  const from = Date.now()
  for (let i = 0; i < 1000; i++) verifier.verify(busy.plaintext_key)
  await eventually(async () => Date.parse((await metadata(busy)).last_used_at as string) >= from - 50)
  const { body } = await service.call('GET', '/v1/gateways', { token: await service.token() })
  t.ok((body.gateways as { id: string }[]).some(({ id }) => id.startsWith('gw_')))
  t.equal((await metadata(busy)).last_used_by, body.gateways.at(-1).id)
  t.same(reports.flat().filter(({ key_id }) => key_id === refused.key.id), [], 'what was refused was no use')
  t.ok(reports.length <= 3, 'a thousand uses are one report or two')

  isThere = false
  verifier.verify(busy.plaintext_key)
  const before = reports.length
  await eventually(() => reports.length > before + 2)
  isThere = true
  const { usesReported } = verifier.state().counts
  await eventually(() => verifier.state().counts.usesReported > usesReported)
  t.equal(verifier.state().counts.usesLost, 0, 'what could not be reported is kept')

  const end = Date.now()
  verifier.verify(late.plaintext_key)
  await verifier.close()
  await eventually(async () => Date.parse((await metadata(late)).last_used_at as string) >= end - 50)
})

t.test('no more uses are gathered than there may be keys, and what is lost is counted', async (t) => {
  const use = () => ({ verdict: { key_id: 'key_x' } as Valid, usedAt: 0, isGathered: false })
  let answer: () => Promise<boolean> = async () => Promise.reject(new VerifierUnavailable('service_unreachable', 'not now'))
  const sizes: number[] = []
  const usage = new UsageReporter({ report: async (uses) => (sizes.push(uses.length), answer()), intervalMs: 1e6, max: 2500, onError: (error) => t.fail(String(error)) })
  for (let i = 0; i < 3000; i++) usage.seen(use(), 1)
  t.equal(usage.lost, 500)
  await usage.flush()
  t.same(sizes, [1000], 'it is not tried again with each thousand')
  answer = async () => true
  await usage.flush()
  t.same(sizes, [1000, 1000, 1000, 500])
  t.equal(usage.reported, 2500)
  usage.seen(use(), 2)
  answer = async () => false
  await usage.stop(1000)
  t.equal(usage.lost, 501, 'what the service will never take is not kept')
})

t.test('a verifier tells how it is and what it has done, and why the stream was lost', async (t) => {
  const served = await serve(t)
  const losses: StreamLost[] = []
  const wire = await layWire(t, served.url)
  const proxy = await split(t, served.url, wire.through(served.url))
  const verifier = verifierFor(t, { ...served, url: proxy.url }, { maxStalenessMs: 2000, onStreamLost: (loss) => losses.push(loss) })
  t.match(verifier.state(), { isFresh: false, freshSince: null, confirmedAt: null, cached: 0, watched: 0, counts: { hits: 0, asked: 0 } })
  const { key, plaintext_key } = await served.service.issue()
  await held(verifier, plaintext_key)
  const { hits } = verifier.state().counts
  for (let i = 0; i < 10; i++) verifier.verify(plaintext_key)
  verifier.watch(key.id, () => {})
  const state = verifier.state()
  t.match(state, { isFresh: true, streamLoss: null, cached: 1, watched: 1, asking: 0, waiting: 0, counts: { hits: hits + 10, unavailable: 0, otherHistory: 0, resets: 1, streamsLost: 0 } })
  t.ok(state.counts.asked > 0)
  t.ok(state.freshSince! <= new Date() && state.confirmedAt! <= new Date())
  t.notMatch(JSON.stringify(state), new RegExp(`${plaintext_key}|${served.credential}`))

  wire.cut()
  await eventually(() => !verifier.isFresh())
  t.match(verifier.state(), { isFresh: false, freshSince: null, streamLoss: 'unreachable', counts: { streamsLost: 1 } })
  t.match(losses, [{ name: 'VerifierUnavailable', reason: /^(broken|ended)$/, code: 'service_unreachable' }], 'told once')
  wire.restore()
  await eventually(() => verifier.isFresh())
  t.equal(verifier.state().streamLoss, null)
  await served.service.call('POST', `/v1/keys/${key.id}/revoke`, { token: await served.service.token() })
  await eventually(() => verifier.state().counts.changes > 0)
  wire.silence()
  await eventually(() => losses.length > 1)
  t.equal(losses[1]!.reason, 'silent')
})

t.test('options that are wrong are told at once, without their values', async (t) => {
  const good = { url: 'http://127.0.0.1:1', credential: 'mgw_x' }
  const wrong: [object, RegExp][] = [
    [{ url: 'nowhere' }, /^url /], [{ url: 'ftp://x' }, /^url /], [{ credential: '' }, /^credential /], [{ credential: 'mgw_x\n' }, /^credential /],
    [{ maxStalenessMs: 0 }, /^maxStalenessMs /], [{ timeoutMs: 1.5 }, /^timeoutMs /], [{ cacheMaxKeys: -1 }, /^cacheMaxKeys /],
    [{ maxConcurrent: 0 }, /^maxConcurrent /], [{ maxWaiting: -1 }, /^maxWaiting /], [{ clockToleranceMs: 400_001 }, /^clockToleranceMs /],
    [{ revalidateAfterMs: 999 }, /^revalidateAfterMs /], [{ revalidateAfterMs: 2 ** 31 }, /^revalidateAfterMs /], [{ usageIntervalMs: 0 }, /^usageIntervalMs /], [{ usageIntervalMs: 2 ** 31 }, /^usageIntervalMs /],
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
