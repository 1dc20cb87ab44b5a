/** What a gateway does when its clocks do not agree: after the machine was suspended, or its clock was set. */

import { join } from 'node:path'
import t, { type Test } from 'tap'
import type { StreamLost } from '../../src/gateway-sdk/index.js'
import { eventually } from '../helpers/eventually.js'
import { held, isHeld, outcome, serve, split, startGateway, verifierFor } from '../helpers/gateway.js'
import { wallClock, withoutFaketime } from '../helpers/wall-clock.js'
import { layWire } from '../helpers/wire.js'

const SUSPENDED = 30_000

t.test('a gateway that was suspended, which its monotonic clock does not see, believes nothing from before', { skip: withoutFaketime }, async (t) => {
  const served = await serve(t)
  const wire = await layWire(t, served.url)
  const clock = wallClock(join(t.testdir(), 'clock'), 0)
  const gateway = startGateway(t, [wire.through(served.url).replace(/\/$/, ''), served.credential, '20000'], clock.environment)
  const { key, plaintext_key } = await served.service.issue()
  await eventually(async () => (await gateway.ask(plaintext_key)).wasHeld)
  wire.silence()
  await served.service.call('POST', `/v1/keys/${key.id}/revoke`, { token: await served.service.token() })
  t.match(await gateway.ask(plaintext_key), { outcome: 'valid', isFresh: true }, 'within the bound it knows no better')
  clock.step(SUSPENDED / 1000)
  t.match(await gateway.ask(plaintext_key), { outcome: 'service_unreachable', wasHeld: false, isFresh: false }, 'and past it, it says so at once')
  wire.restore()
  await eventually(async () => (await gateway.ask(plaintext_key)).outcome === 'revoked')
})

for (const [how, ms] of [['forward, as after a suspension', SUSPENDED], ['forward by less than the bound', 4000], ['back', -SUSPENDED]] as const)
  t.test(`when the clock jumps ${how}, nothing is answered from memory until a stream asked for afterwards confirms`, async (t) => {
    const served = await serve(t)
    const wire = await layWire(t, served.url)
    const proxy = await split(t, served.url, wire.through(served.url))
    const losses: StreamLost[] = []
    const verifier = verifierFor(t, { ...served, url: proxy.url }, { maxStalenessMs: 20_000, onStreamLost: (loss) => losses.push(loss) })
    const { key, plaintext_key } = await served.service.issue()
    await held(verifier, plaintext_key)
    const ends: object[] = []
    verifier.watch(key.id, (end) => ends.push(end))

    setClock(t, ms)
    t.notOk(isHeld(verifier, plaintext_key), 'not at any moment after it')
    t.notOk(verifier.isFresh())
    t.equal(await outcome(verifier, plaintext_key), 'valid', 'the service says what is')
    await eventually(() => losses.length > 0)
    t.equal(losses[0]!.reason, 'clock_jumped')
    await held(verifier, plaintext_key)
    t.equal(losses.length, 1, 'one that is asked for afterwards is enough')

    // Another one, when there is no way to the service: it is not known how old anything is.
    wire.silence()
    setClock(t, ms * 2)
    t.notOk(isHeld(verifier, plaintext_key))
    const { plaintext_key: another } = await served.service.issue()
    t.equal(await outcome(verifier, another), 'valid')
    t.notOk(isHeld(verifier, another), 'and nothing is held on the word of a stream from before')
  })

t.test('an open socket is not vouched for by a clock that has jumped: the service is asked, or it ends', async (t) => {
  const served = await serve(t)
  const wire = await layWire(t, served.url)
  const verifier = verifierFor(t, { ...served, url: wire.through(served.url) }, { maxStalenessMs: 20_000, timeoutMs: 300 })
  const { key, plaintext_key } = await served.service.issue()
  await held(verifier, plaintext_key)
  wire.silence()
  const ends: { reason: string; leftMs: number }[] = []
  verifier.watch(key.id, (end) => ends.push(end))
  setClock(t, 4000)
  await eventually(() => ends.length > 0)
  t.match(ends, [{ reason: 'stale' }])
  t.ok(ends[0]!.leftMs < 16_000, `${ends[0]!.leftMs} ms are left of 20,000`)
  verifier.watch(key.id, (end) => ends.push(end))
  setClock(t, SUSPENDED)
  await eventually(() => ends.length > 1)
  t.match(ends[1], { reason: 'stale', leftMs: 0 }, 'and none when the machine was away for longer than the bound')
})

t.test('a signed request is not refused as untimely by a clock that has jumped: nobody knows', async (t) => {
  const served = await serve(t)
  const wire = await layWire(t, served.url)
  const proxy = await split(t, served.url, wire.through(served.url))
  const verifier = verifierFor(t, { ...served, url: proxy.url })
  const { plaintext_key } = await served.service.issue()
  await held(verifier, plaintext_key)
  const headers = { 'x-mecha-key': plaintext_key, 'x-request-timestamp': new Date().toISOString(), 'x-nonce': '0123456789abcdef', 'x-signature': 'x' }
  t.match(await verifier.verifySigned({ headers, body: Buffer.alloc(0) }), { code: 'wrong_signature' }, 'it is timely')
  wire.silence()
  setClock(t, 3_600_000)
  await t.rejects(verifier.verifySigned({ headers, body: Buffer.alloc(0) }), { name: 'VerifierUnavailable', code: 'service_unavailable' })
})

/** Sets the wall clock of this process, until the test is over. */
function setClock(t: Test, ms: number): void {
  const { now } = trueDate
  Date.now = () => now() + ms
  t.teardown(() => (Date.now = now))
}

const trueDate = { now: Date.now }
