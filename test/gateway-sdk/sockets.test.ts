/** What stands on the verifier: requests and upgrades of a plain `node:http` server, and Fastify. */

import { randomUUID } from 'node:crypto'
import { once } from 'node:events'
import { createServer, request, type IncomingMessage } from 'node:http'
import type { AddressInfo, Socket } from 'node:net'
import Fastify from 'fastify'
import { sql } from 'kysely'
import t, { type Test } from 'tap'
import { mechaAuth } from '../../src/gateway-sdk/fastify.js'
import { authenticateRequest, authenticateSignedRequest, authenticateUpgrade, keepVouched, signRequest, type CloseReason, type Demand, type StreamLost, type Valid, type Verifier } from '../../src/gateway-sdk/index.js'
import { createSignedVerifier } from '../../src/gateway-sdk/signed.js'
import { createDatabase } from '../helpers/database.js'
import { eventually } from '../helpers/eventually.js'
import { held, outcome, replicaOf, serve, split, verifierFor } from '../helpers/gateway.js'
import { layWire } from '../helpers/wire.js'

const BOUND = 2000

t.test('a request is let pass with its identity, or refused with a problem and a challenge', async (t) => {
  const served = await serve(t)
  const verifier = verifierFor(t, served)
  const { key, plaintext_key } = await served.service.issue({ scopes: ['orders:read'] })
  const plain = await plainGateway(t, verifier, {})
  const strict = await plainGateway(t, verifier, { scopes: ['orders:write'] })
  const other = await plainGateway(t, verifier, { mecha: 'boss^acmecorp' })
  const get = async (url: string, headers: Record<string, string>) => {
    const response = await fetch(url, { headers })
    return { status: response.status, challenge: response.headers.get('www-authenticate'), type: response.headers.get('content-type'), body: (await response.json()) as any }
  }
  for (const headers of [{ 'x-mecha-key': plaintext_key } as Record<string, string>, { authorization: `Bearer ${plaintext_key}` }, { authorization: `bearer ${plaintext_key}` }])
    t.match(await get(plain, headers), { status: 200, body: { key_id: key.id, mecha: { handle: 'sales^acmecorp' } } })
  t.match(await get(plain, {}), { status: 401, challenge: 'Bearer realm="mecha"', type: 'application/problem+json', body: { status: 401, code: 'unauthenticated' } })
  t.match(await get(plain, { authorization: 'Basic eDp5' }), { status: 401, body: { code: 'unauthenticated' } })
  t.match(await get(plain, { 'x-mecha-key': 'x', authorization: `Bearer ${plaintext_key}` }), { status: 401, body: { code: 'malformed' } }, 'X-Mecha-Key decides where there are both')
  t.match(await get(plain, { 'x-mecha-key': 'x' }), { status: 401, challenge: 'Bearer realm="mecha", error="invalid_token"', body: { code: 'malformed' } })
  t.match(await get(strict, { 'x-mecha-key': plaintext_key }), { status: 403, challenge: 'Bearer realm="mecha", error="insufficient_scope", scope="orders:write"', body: { code: 'insufficient_scope' } })
  t.match(await get(other, { 'x-mecha-key': plaintext_key }), { status: 403, body: { code: 'mecha_mismatch' } })
  const nobody = await plainGateway(t, verifierFor(t, { ...served, url: 'http://127.0.0.1:1' }), {})
  const unavailable = await fetch(nobody, { headers: { 'x-mecha-key': plaintext_key } })
  t.equal(unavailable.status, 503)
  t.equal(unavailable.headers.get('retry-after'), '1')
  t.notOk((await unavailable.text()).includes(plaintext_key))
})

t.test('a Fastify app lets Mechas pass, as its routes demand', async (t) => {
  const served = await serve(t)
  const verifier = verifierFor(t, served)
  const { key, plaintext_key } = await served.service.issue({ scopes: ['orders:read'] })
  const app = Fastify()
  t.teardown(() => app.close())
  app.get('/outside', async () => 'anybody')
  await app.register(async (scope) => {
    await scope.register(mechaAuth, { verifier })
    scope.get('/me', async ({ mecha }) => mecha)
    scope.get('/open', { config: { mecha: false } }, async ({ mecha }) => ({ mecha: mecha ?? null }))
    scope.get('/write', { config: { mecha: { scopes: ['orders:write'] } } }, async () => 'written')
    scope.get('/boss', { config: { mecha: { mecha: 'boss^acmecorp' } } }, async () => 'boss')
  })
  const get = async (url: string, headers: Record<string, string> = {}) => app.inject({ url, headers })
  const own = { 'x-mecha-key': plaintext_key }
  t.match((await get('/me', own)).json(), { key_id: key.id, org_id: 'acme', scopes: ['orders:read'] })
  t.match(await get('/me'), { statusCode: 401, headers: { 'www-authenticate': 'Bearer realm="mecha"', 'content-type': 'application/problem+json' } })
  t.match((await get('/me', { 'x-mecha-key': 'x' })).json(), { status: 401, code: 'malformed' })
  t.match(await get('/open'), { statusCode: 200 })
  t.match((await get('/write', own)).json(), { status: 403, code: 'insufficient_scope' })
  t.match((await get('/boss', own)).json(), { status: 403, code: 'mecha_mismatch' })
  t.match((await get('/outside')).body, 'anybody')
  await verifier.close()
  t.match(await get('/me', own), { statusCode: 503, headers: { 'retry-after': '1' } })
})

t.test('an upgrade without a good key is refused, and its socket ended', async (t) => {
  const served = await serve(t)
  const gateway = await socketGateway(t, verifierFor(t, served), { scopes: ['orders:write'] })
  const { plaintext_key } = await served.service.issue()
  t.match(await gateway.connect(), { status: 401, challenge: 'Bearer realm="mecha"' })
  t.match(await gateway.connect('x'), { status: 401 })
  t.match(await gateway.connect(plaintext_key), { status: 403 })
  t.equal(gateway.open(), 0)
})

t.test('an open socket is closed when its key ends, however it ends', async (t) => {
  const served = await serve(t)
  const { service } = served
  const gateway = await socketGateway(t, verifierFor(t, served, { maxStalenessMs: BOUND }))
  const token = await service.token()
  const ends: [string, (id: string) => Promise<unknown>][] = [
    ['revoked', (id) => service.call('POST', `/v1/keys/${id}/revoke`, { token })],
    ['disabled', (id) => service.call('PATCH', `/v1/keys/${id}`, { token, body: { enabled: false } })],
    ['expired', (id) => service.call('PATCH', `/v1/keys/${id}`, { token, body: { expires_at: new Date(Date.now() + 2500).toISOString() } })],
    ['revoked', () => service.call('POST', '/v1/mechas/sales%5Eacmecorp/revoke-keys', { token })],
  ]
  for (const [reason, end] of ends) {
    const { key, plaintext_key } = await service.issue()
    const { socket, data } = await gateway.connect(plaintext_key)
    const closed = once(socket!, 'close')
    const at = performance.now()
    await end(key.id)
    await closed
    t.equal(gateway.ends.at(-1), reason)
    t.equal(data(), 'last word', 'after a last word')
    t.ok(performance.now() - at < BOUND + 2500)
    t.equal(gateway.open(), 0)
  }
})

t.test('an open socket stays open when its key changes and is still good', async (t) => {
  const database = await createDatabase(t)
  const wire = await layWire(t, database.runtime)
  const served = await serve(t, { DATABASE_DIRECT_URL: wire.through(database.runtime) }, database)
  const { service } = served
  const verifier = verifierFor(t, served)
  const gateway = await socketGateway(t, verifier)
  const { key, plaintext_key } = await service.issue()
  const { socket } = await gateway.connect(plaintext_key)
  const token = await service.token()
  const known = await service.issue()
  await held(verifier, known.plaintext_key)
  const changes: [string, () => Promise<unknown>][] = [
    ['its name', () => service.call('PATCH', `/v1/keys/${key.id}`, { token, body: { name: 'other' } })],
    ['it is rotated', () => service.call('POST', `/v1/keys/${key.id}/rotate`, { token })],
    ['by hand', () => sql`UPDATE keys SET metadata = '{"a": 1}' WHERE kind = 'mecha'`.execute(service.database.db)],
    ['anything may have changed', async () => (wire.cut(), wire.restore())],
  ]
  for (const [what, change] of changes) {
    const before = await streamsBegun(service)
    await change()
    // Settled again: told, asked about, and held.
    if (what === 'anything may have changed') await eventually(async () => (await streamsBegun(service)) > before)
    else await held(verifier, plaintext_key)
    await held(verifier, plaintext_key)
    t.notOk(socket!.destroyed, what)
    t.same(gateway.ends, [])
  }
  const closed = once(socket!, 'close')
  await service.call('POST', `/v1/keys/${key.id}/revoke`, { token })
  await closed
  t.same(gateway.ends, ['revoked'], 'and it is still watched')
})

for (const lose of ['cut', 'silence'] as const)
  t.test(`an open socket is closed when nothing vouches for its key for as long as the bound (${lose})`, async (t) => {
    const served = await serve(t)
    const wire = await layWire(t, served.url)
    const verifier = verifierFor(t, { ...served, url: wire.through(served.url) }, { maxStalenessMs: BOUND, timeoutMs: 300 })
    const gateway = await socketGateway(t, verifier)
    const { plaintext_key } = await served.service.issue()
    await held(verifier, plaintext_key)
    const { socket } = await gateway.connect(plaintext_key)
    const at = performance.now()
    wire[lose]()
    await once(socket!, 'close')
    t.same(gateway.ends, ['stale'])
    t.ok(performance.now() - at <= BOUND + 500, `it took ${Math.round(performance.now() - at)} ms`)
  })

t.test('where the stream cannot be had, the key of an open socket is asked about within the bound, again and again', async (t) => {
  const served = await serve(t)
  const wire = await layWire(t, served.url)
  wire.cut()
  const proxy = await split(t, served.url, wire.through(served.url))
  const gateway = await socketGateway(t, verifierFor(t, { ...served, url: proxy.url }, { maxStalenessMs: BOUND }))
  const { key, plaintext_key } = await served.service.issue()
  const { socket } = await gateway.connect(plaintext_key)
  await eventually(() => proxy.counts.verify >= 3)
  t.notOk(socket!.destroyed)
  const closed = once(socket!, 'close')
  await served.service.call('POST', `/v1/keys/${key.id}/revoke`, { token: await served.service.token() })
  await closed
  t.same(gateway.ends, ['revoked'])
})

t.test('an open socket stays open while the stream alone is away, for the service is asked about its key', async (t) => {
  const served = await serve(t)
  const wire = await layWire(t, served.url)
  const proxy = await split(t, served.url, wire.through(served.url))
  const verifier = verifierFor(t, { ...served, url: proxy.url }, { maxStalenessMs: BOUND })
  const gateway = await socketGateway(t, verifier)
  const { key, plaintext_key } = await served.service.issue()
  await held(verifier, plaintext_key)
  const { socket } = await gateway.connect(plaintext_key)
  wire.cut()
  await eventually(() => !verifier.isFresh())
  const asked = proxy.counts.verify
  // Each answer is good for the bound at most: after two more, the first is over.
  await eventually(() => proxy.counts.verify >= asked + 3)
  t.notOk(socket!.destroyed)
  t.same(gateway.ends, [])
  const closed = once(socket!, 'close')
  await served.service.call('POST', `/v1/keys/${key.id}/revoke`, { token: await served.service.token() })
  await closed
  t.same(gateway.ends, ['revoked'], 'and a revocation closes it')
})

t.test('many sockets that lose the stream together are no storm, and keep nobody else from being answered', async (t) => {
  const served = await serve(t)
  const wire = await layWire(t, served.url)
  const proxy = await split(t, served.url, wire.through(served.url))
  const lost: StreamLost[] = []
  const verifier = verifierFor(t, { ...served, url: proxy.url }, { onStreamLost: (loss) => lost.push(loss) })
  const keys: { readonly identity: Valid; readonly text: string }[] = []
  await eventually(() => verifier.isFresh())
  for (let i = 0; i < 100; i++) {
    const { plaintext_key: text } = await served.service.issue({ mecha: `m${i}^acmecorp` })
    const identity = await verifier.verify(text)
    if (!identity.valid) throw new Error(identity.code)
    keys.push({ identity, text })
  }
  for (const { text } of keys) await held(verifier, text)
  const ends: CloseReason[] = []
  const releases = Array.from({ length: 10_000 }, (_, place) => {
    const { identity, text } = keys[place % keys.length]!
    return keepVouched(verifier, text, identity, {}, (reason) => ends.push(reason))
  })
  t.equal(verifier.state().watched, 10_000)
  wire.cut()
  // All are asked about, and no more than may be at once: others are answered meanwhile.
  const { plaintext_key: other } = await served.service.issue()
  let most = 0
  const answers = new Set<string>()
  const verifies = proxy.counts.verify
  await eventually(async () => {
    most = Math.max(most, verifier.state().asking)
    answers.add(await outcome(verifier, other))
    return proxy.counts.verify - verifies > 2 * keys.length && !verifier.isFresh()
  })
  t.same([...answers], ['valid'])
  t.ok(most <= 34, `${most} at once, with the one that anybody else asks and a report of uses`)
  t.same(ends, [])
  wire.restore()
  await eventually(() => verifier.isFresh())
  t.same(ends, [], 'none was closed')
  t.ok(lost.length > 0)
  for (const release of releases) release()
  t.equal(verifier.state().watched, 0)
})

t.test('a listener that throws keeps no socket open, stops no other one, and is reported', async (t) => {
  const served = await serve(t)
  const errors: unknown[] = []
  const lost: StreamLost[] = []
  const onStreamLost = (loss: StreamLost) => {
    lost.push(loss)
    throw new Error('of the stream')
  }
  const verifier = verifierFor(t, served, { onError: (error) => errors.push(error), onStreamLost })
  const { key, plaintext_key } = await served.service.issue()
  await held(verifier, plaintext_key)
  const thrown = { 'at once': () => { throw new Error('at once') }, later: async () => Promise.reject(new Error('later')) }
  const sockets: Socket[] = []
  for (const onEnd of Object.values(thrown)) {
    const gateway = await socketGateway(t, verifier, {}, onEnd)
    sockets.push((await gateway.connect(plaintext_key)).socket!)
  }
  const called: string[] = []
  verifier.watch(key.id, () => { throw new Error('of a watch') })
  verifier.watch(key.id, ({ reason }) => called.push(reason))
  const closed = Promise.all(sockets.map((socket) => once(socket, 'close')))
  await served.service.call('POST', `/v1/keys/${key.id}/revoke`, { token: await served.service.token() })
  await closed
  t.same(called, ['changed'], 'the others are called')
  t.same(errors.map((error) => (error as Error).message).sort(), ['at once', 'later', 'of a watch'])
  t.same(lost, [], 'and the stream goes on')
  t.equal(verifier.state().watched, 0)
  await served.service.app.close()
  await eventually(() => lost.length > 0 && errors.length > 3)
  t.match(errors.at(-1), { message: 'of the stream' })
})

t.test('what a listener throws is a warning of the process where nobody wants to hear of it', async (t) => {
  const served = await serve(t)
  const verifier = verifierFor(t, served)
  const { key, plaintext_key } = await served.service.issue()
  await held(verifier, plaintext_key)
  const warned = once(process, 'warning')
  verifier.watch(key.id, () => { throw new TypeError('nobody catches it') })
  await served.service.call('POST', `/v1/keys/${key.id}/revoke`, { token: await served.service.token() })
  t.match(await warned, [{ message: 'nobody catches it' }])
})

t.test('a watch that is ended is not called, and sockets that close leave nothing behind', async (t) => {
  const served = await serve(t)
  const verifier = verifierFor(t, served)
  const { key, plaintext_key } = await served.service.issue()
  const kept = await served.service.issue()
  await held(verifier, plaintext_key)
  await held(verifier, kept.plaintext_key)
  const called: string[] = []
  const end = verifier.watch(key.id, () => called.push('ended'))
  verifier.watch(key.id, ({ reason, leftMs }) => called.push(`${reason} ${leftMs > 0}`))
  end()
  await served.service.call('POST', `/v1/keys/${key.id}/revoke`, { token: await served.service.token() })
  await eventually(() => called.length > 0)
  t.same(called, ['changed true'])
  // Of a key that is not held nobody can say anything.
  verifier.watch(key.id, ({ reason, leftMs }) => called.push(`${reason} ${leftMs}`))
  await eventually(() => called.length > 1)
  t.same(called[1], 'changed 0')
})

t.test('signed requests', async (t) => {
  const served = await serve(t)
  const { service } = served
  const second = await replicaOf(t, served)
  const [one, other] = [verifierFor(t, served), verifierFor(t, { ...served, url: second.url })]
  const { plaintext_key: key } = await service.issue({ scopes: ['orders:read'] })
  const body = Buffer.from('{"text":"a|b\\u0000é"}')
  const signed = (changes: Record<string, string> = {}, at = Date.now()) => {
    const parts = { key, body, nonce: randomUUID(), timestamp: new Date(at).toISOString() }
    return { 'x-mecha-key': key, 'x-request-timestamp': parts.timestamp, 'x-nonce': parts.nonce, 'x-signature': signRequest(parts), ...changes }
  }
  const verify = async (headers: Record<string, string>, demand: Demand = {}, verifier = one, bytes: Buffer = body) => {
    const verdict = await verifier.verifySigned({ headers, body: bytes }, demand)
    return verdict.valid ? 'valid' : verdict.code
  }

  const headers = signed()
  t.equal(await verify(headers), 'valid')
  t.equal(await verify(headers), 'nonce_reused')
  t.equal(await verify(headers, {}, other), 'nonce_reused', 'on another gateway too')
  const raced = signed()
  t.same((await Promise.all([verify(raced), verify(raced, {}, other), verify(raced), verify(raced, {}, other)])).sort(), ['nonce_reused', 'nonce_reused', 'nonce_reused', 'valid'])

  const unused = signed()
  t.equal(await verify({ ...unused, 'x-signature': signed()['x-signature'] }), 'wrong_signature')
  t.equal(await verify(unused, {}, one, Buffer.from('{}')), 'wrong_signature', 'of another body')
  t.equal(await verify({ ...unused, 'x-request-timestamp': new Date(Date.now() - 1000).toISOString() }), 'wrong_signature', 'of another time')
  t.equal(await verify(unused, { scopes: ['orders:write'] }), 'insufficient_scope')
  for (const name of Object.keys(unused)) {
    const { [name as 'x-nonce']: _, ...rest } = unused
    t.equal(await verify(rest), 'unsigned', `without ${name}`)
  }
  t.equal(await verify(unused), 'valid', 'no refusal used its nonce up')

  t.equal(await verify(signed({}, Date.now() - 310_000)), 'untimely')
  t.equal(await verify(signed({}, Date.now() + 310_000)), 'untimely')
  t.equal(await verify(signed({}, Date.now() + 280_000)), 'valid')
  t.equal(await verify(signed({}, Date.now() - 280_000)), 'valid')
  t.equal(await verify(signed({ 'x-request-timestamp': 'yesterday' })), 'unsigned')
  t.equal(await verify(signed({ 'x-mecha-key': 'x' })), 'malformed')

  const app = Fastify()
  t.teardown(() => app.close())
  await app.register(mechaAuth, { verifier: one, signed: true })
  app.post('/orders', { bodyLimit: 1000 }, async ({ mecha, body: parsed }) => ({ by: mecha.mecha.handle, parsed }))
  app.get('/orders', async ({ mecha }) => mecha.mecha.handle)
  const post = (own: Record<string, string>, payload: Buffer = body) => app.inject({ method: 'POST', url: '/orders', headers: { ...own, 'content-type': 'application/json' }, payload })
  const again = signed()
  t.match((await post(again)).json(), { by: 'sales^acmecorp', parsed: { text: 'a|b\u0000é' } })
  t.match((await post(again)).json(), { status: 401, code: 'nonce_reused' })
  t.match((await post({ 'x-mecha-key': key })).json(), { status: 401, code: 'unsigned' }, 'a key alone is not enough')
  t.match((await post(signed(), Buffer.from(`"${'x'.repeat(1000)}"`))).json(), { status: 413, code: 'body_too_large' })
  const empty = { nonce: randomUUID(), timestamp: new Date().toISOString() }
  t.equal((await app.inject({ url: '/orders', headers: { 'x-mecha-key': key, 'x-request-timestamp': empty.timestamp, 'x-nonce': empty.nonce, 'x-signature': signRequest({ key, body: '', ...empty }) } })).body, 'sales^acmecorp')

  const plain = await plainGateway(t, one, {}, true)
  const sent = await fetch(plain, { method: 'POST', headers: signed(), body })
  t.match(await sent.json(), { key_id: /^key_/, body: body.toString() })
  t.equal((await fetch(plain, { method: 'POST', headers: signed(), body: 'x'.repeat(5000) })).status, 413)
  await service.app.close()
  await second.service.app.close()
  t.match(await one.verifySigned({ headers: signed(), body }).catch((error: unknown) => error), { name: 'VerifierUnavailable' }, 'a nonce that nobody can look up is no good one')
})

t.test('the nonce of a signed request outlives what any gateway tolerates, whatever this one does', async (t) => {
  const key = `mecha_${'0'.repeat(26)}_${'x'.repeat(60)}`
  const now = Date.now()
  for (const clockToleranceMs of [1, 300_000, 400_000])
    for (const time of [now - clockToleranceMs, now + clockToleranceMs]) {
      const ends: Date[] = []
      const verifySigned = createSignedVerifier({
        verify: () => ({ valid: true, key_id: 'key_x' }) as Valid,
        useNonce: async (_id, _nonce, end) => ends.push(end) > 0,
        now: () => now,
        isClockInDoubt: () => false,
        clockToleranceMs,
      })
      const parts = { key, body: '', nonce: randomUUID(), timestamp: new Date(time).toISOString() }
      const headers = { 'x-mecha-key': key, 'x-request-timestamp': parts.timestamp, 'x-nonce': parts.nonce, 'x-signature': signRequest(parts) }
      t.match(await verifySigned({ headers, body: Buffer.alloc(0) }), { valid: true })
      t.ok(ends[0]!.getTime() > time + 400_000, `of ${clockToleranceMs} ms`)
      t.ok(ends[0]!.getTime() < now + 900_000, 'and is one that the service takes')
    }
})

/** A `node:http` server that answers with who calls. */
async function plainGateway(t: Test, verifier: Verifier, demand: Demand, isSigned = false): Promise<string> {
  const server = createServer(async (incoming, response) => {
    if (isSigned) {
      const found = await authenticateSignedRequest(verifier, incoming, response, { ...demand, maxBodyBytes: 1000 })
      if (found) response.end(JSON.stringify({ ...found.identity, body: found.body.toString() }))
      return
    }
    const identity = await authenticateRequest(verifier, incoming, response, demand)
    if (identity) response.end(JSON.stringify(identity))
  })
  return listening(t, server)
}

/** A server whose upgrades echo nothing and stay open, as a WebSocket that waits. */
async function socketGateway(t: Test, verifier: Verifier, demand: Demand = {}, listener?: (reason: CloseReason) => void) {
  const ends: CloseReason[] = []
  let open = 0
  const server = createServer()
  server.on('upgrade', async (incoming: IncomingMessage, socket: Socket) => {
    const onEnd = (reason: CloseReason) => {
      ends.push(reason)
      socket.write('last word')
      return listener?.(reason)
    }
    const identity = await authenticateUpgrade(verifier, incoming, socket, { ...demand, onEnd })
    if (!identity) return
    open++
    socket.on('close', () => open--)
    socket.resume().write('HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: test\r\n\r\n')
  })
  const url = await listening(t, server)
  return {
    ends,
    open: () => open,
    async connect(key?: string): Promise<{ status: number; challenge?: string | undefined; socket?: Socket; data: () => string }> {
      const sent = request(url, { headers: { connection: 'Upgrade', upgrade: 'test', ...(key && { 'x-mecha-key': key }) } })
      sent.end()
      const outcome = await Promise.race([once(sent, 'upgrade'), once(sent, 'response')])
      const [response, socket] = outcome as [IncomingMessage, Socket | undefined]
      if (response.statusCode !== 101) return { status: response.statusCode!, challenge: response.headers['www-authenticate'], data: () => '' }
      let data = ''
      socket!.on('error', () => {}).on('data', (chunk) => (data += String(chunk)))
      t.teardown(() => socket!.destroy())
      return { status: 101, socket: socket!, data: () => data }
    },
  }
}

async function listening(t: Test, server: ReturnType<typeof createServer>): Promise<string> {
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  t.teardown(() => (server.closeAllConnections(), server.close()))
  return `http://127.0.0.1:${(server.address() as AddressInfo).port}`
}

async function streamsBegun(service: Awaited<ReturnType<typeof serve>>['service']): Promise<number> {
  const { text } = await service.call('GET', '/metrics')
  return Number(/mecha_keys_verifications_total\{credential="gateway",result="valid"\} (\d+)/.exec(text)?.[1] ?? 0)
}
