/** The configurations of `examples/proxies/`, in the real programs, between a client and an application. */

import { randomBytes } from 'node:crypto'
import { once } from 'node:events'
import { createServer, request, type IncomingMessage } from 'node:http'
import { connect, isIP, type AddressInfo, type Socket } from 'node:net'
import { text } from 'node:stream/consumers'
import t, { type Test } from 'tap'
import { applied } from '../../helpers/database.js'
import { startEcho, type Arrived, type Echo } from '../../helpers/echo.js'
import { serve, verifierFor } from '../../helpers/gateway.js'
import { startPhp } from '../../helpers/php.js'
import { isInstalled } from '../../helpers/programs.js'
import { startCaddy, startEnvoy, startHaproxy, startNginx, startTraefik, type ProxyOptions } from '../../helpers/proxies.js'
import { startService, type Service } from '../../helpers/service.js'

const PROXIES: Record<'nginx' | 'caddy' | 'haproxy' | 'traefik' | 'envoy', (t: Test, options: ProxyOptions) => Promise<string>> = { nginx: startNginx, caddy: startCaddy, haproxy: startHaproxy, traefik: startTraefik, envoy: startEnvoy }
const PROGRAMS = Object.keys(PROXIES) as (keyof typeof PROXIES)[]
const installed = () => PROGRAMS.filter(isInstalled).map((name) => [name, PROXIES[name]] as const)
const SKIP = installed().length === 0 && 'no proxy is installed'
const IDENTITY = ['x-mecha-id', 'x-mecha-handle', 'x-mecha-crew', 'x-mecha-org', 'x-mecha-scopes', 'x-mecha-key-id']
/** All that an application may take for one of these: CGI (RFC 3875, section 4.1.18) leaves it to a server what becomes of the rest. */
const LOOKS_LIKE_OURS = /^x[^0-9a-z]mecha/i
/** All that a header's name may have in the place of a hyphen (RFC 9110, section 5.6.2). */
const SEPARATORS = [..."!#$%&'*+.^_`|~"]
const php = isInstalled('php') ? await startPhp(t) : undefined

for (const name of PROGRAMS) {
  const startProxy = PROXIES[name]
  const skip = !isInstalled(name) && `${name} is not installed`

  t.test(`${name}: between a client and an application`, { skip }, async (t) => {
    const { service, listen } = await startListening(t)
    const gatewayCredential = await service.gateway()
    const echo = await startEcho(t)
    const authz = await listen()
    const proxy = await startProxy(t, { authz, upstream: echo.url, gatewayCredential })

    await t.test('an application in PHP reads no identity but the true one', { skip: !php && 'php is not installed' }, async (t) => {
      await readsTheTrueIdentity(t, { service, proxy: await startProxy(t, { authz, upstream: php!, gatewayCredential }) })
    })

    const { plaintext_key } = await service.issue()

    await t.test("an application's own headers are no business of mecha-keys", async (t) => {
      const headers = { 'X-Mecha-Key': plaintext_key, 'X-Large': 'x'.repeat(17 * 1024), Cookie: 'x'.repeat(17 * 1024), 'X-Request-Id': 'x'.repeat(17 * 1024) }
      for (const large of ['X-Large', 'Cookie', 'X-Request-Id'] as const)
        // nginx and HAProxy take no header of this size at all.
        t.equal((await send(proxy, { headers: { 'X-Mecha-Key': plaintext_key, [large]: headers[large] } })).status, name === 'nginx' || name === 'haproxy' ? 400 : 200, large)
    })

    await t.test('a body of 10 MB passes', async (t) => {
      const [most, headers] = ['x'.repeat(10 * 1024 * 1024), { 'X-Mecha-Key': plaintext_key }]
      const { status, arrived } = await send(proxy, { method: 'POST', headers, body: most })
      t.match({ status, length: arrived?.body.length }, { status: 200, length: most.length })
      if (name === 'nginx') t.equal((await send(proxy, { method: 'POST', headers, body: `${most}x` })).status, 413, 'and a larger one where it is allowed')
    })

    await t.test('the application is told from where a client comes, whatever the client says', async (t) => {
      const { arrived } = await send(proxy, { headers: { 'X-Mecha-Key': plaintext_key, 'X-Forwarded-For': '203.0.113.7' } })
      const last = valuesOf(arrived!, 'x-forwarded-for').join().split(/, */).at(-1)!
      // Envoy tells of the loopback as the machine's own address.
      t.ok(isIP(last) && (name === 'envoy' ? last !== '203.0.113.7' : last === '127.0.0.1'), last)
    })

    await t.test('HTTP/1.0 is taken, but by Envoy', async (t) => {
      const { host, port } = new URL(proxy)
      const socket = connect(Number(port), '127.0.0.1')
      socket.write(`GET / HTTP/1.0\r\nHost: ${host}\r\nX-Mecha-Key: ${plaintext_key}\r\n\r\n`)
      t.match(await text(socket), name === 'envoy' ? /^HTTP\/1\.1 426 / : /^HTTP\/1\.[01] 200 /)
    })

    await passesAndRefuses(t, { name, service, echo, proxy })

    await t.test('no credential of the gateway reaches the application', async (t) => {
      t.notOk(JSON.stringify(echo.arrived).includes(gatewayCredential))
    })
  })

  t.test(`${name}: with AUTHZ_LISTEN, without a credential`, { skip }, async (t) => {
    const { service, door } = await startListening(t, { AUTHZ_LISTEN: '127.0.0.1:0' })
    const echo = await startEcho(t)
    const proxy = await startProxy(t, { authz: door!, upstream: echo.url })
    await passesAndRefuses(t, { name, service, echo, proxy })
  })
}

t.test('a proxy whose own credential is revoked lets nothing pass, and tells no client that the key is bad', { skip: SKIP }, async (t) => {
  const { service, listen } = await startListening(t)
  const echo = await startEcho(t)
  const [gatewayCredential, { plaintext_key }] = [await service.gateway(), await service.issue()]
  const token = await service.token()
  const { body } = await service.call('GET', '/v1/gateways', { token })
  await service.call('POST', `/v1/gateways/${body.gateways[0].id}/revoke`, { token })
  await applied(service.database)
  const options = { authz: await listen(), upstream: echo.url, gatewayCredential }
  for (const [name, startProxy] of installed()) {
    const { status, headers } = await send(await startProxy(t, options), { headers: { 'X-Mecha-Key': plaintext_key } })
    t.match({ status, headers }, { status: 403, headers: { 'www-authenticate': undefined } }, name)
  }
  t.equal(echo.arrived.length, 0)
})

t.test('what a proxy asks for beside a good key is asked for, and the refusal reaches the client', { skip: SKIP }, async (t) => {
  const { service, listen } = await startListening(t)
  const options = { authz: await listen(), upstream: (await startEcho(t)).url, gatewayCredential: await service.gateway(), demand: 'scope=orders:read&mecha=sales%5Eacmecorp' }
  const [good, poor, other] = [await service.issue({ scopes: ['orders:read'] }), await service.issue(), await service.issue({ mecha: 'buyer^acmecorp', scopes: ['orders:read'] })]
  for (const [name, startProxy] of installed()) {
    const proxy = await startProxy(t, options)
    // What the client asks for is none of it.
    const ask = (key: string) => send(proxy, { path: '/x?scope=other&mecha=x^y&request=', headers: { 'X-Mecha-Key': key } })
    t.equal((await ask(good.plaintext_key)).status, 200, name)
    t.equal((await ask(other.plaintext_key)).status, 403, name)
    const refused = await ask(poor.plaintext_key)
    t.equal(refused.status, 403, name)
    // nginx passes on the challenge of a 401 alone.
    if (name !== 'nginx') t.match(refused.headers['www-authenticate'], /error="insufficient_scope".*scope="orders:read"/, name)
  }
})

t.test('a service that takes a request and says nothing lets nothing pass, and holds nobody for long', { skip: SKIP }, async (t) => {
  const mute = createServer(() => {}).listen(0, '127.0.0.1')
  await once(mute, 'listening')
  t.teardown(() => (mute.close(), mute.closeAllConnections()))
  const echo = await startEcho(t)
  const options = { authz: `http://127.0.0.1:${(mute.address() as AddressInfo).port}`, upstream: echo.url, gatewayCredential: 'mgw_of_nobody' }
  // Traefik's wait of 30 seconds cannot be set.
  await Promise.all(installed().filter(([name]) => name !== 'traefik').map(async ([name, startProxy]) => {
    const proxy = await startProxy(t, options)
    const { status } = await send(proxy, { headers: { 'X-Mecha-Key': 'x' } })
    t.ok(status >= 500, `${name} answers ${status}`)
  }))
  t.equal(echo.arrived.length, 0)
})

t.test('a WebSocket outlives the revocation of its key, unless the gateway behind the proxy looks after it', { skip: SKIP }, async (t) => {
  const served = await serve(t)
  const { service, url: authz, credential: gatewayCredential } = served
  const [plain, gateway] = [await startEcho(t), await startEcho(t, verifierFor(t, served, { maxStalenessMs: 2000 }))]
  await Promise.all(installed().map(async ([name, startProxy]) => {
    const { key, plaintext_key } = await service.issue({ mecha: `${name}^acmecorp` })
    const [bare, watched] = await Promise.all([startProxy(t, { authz, gatewayCredential, upstream: plain.url }), startProxy(t, { authz, gatewayCredential, upstream: gateway.url, passesKey: true })])
    const [unseen, seen] = await Promise.all([openSocket(t, bare, plaintext_key), openSocket(t, watched, plaintext_key)])
    t.match([await seen.echoes(), await unseen.echoes()], [true, true], name)
    await Promise.all([once(seen.socket, 'close'), service.call('POST', `/v1/keys/${key.id}/revoke`, { token: await service.token() })])
    t.ok(await unseen.echoes(), `${name}: what nobody looks after goes on`)
    t.equal((await send(bare, { headers: { 'X-Mecha-Key': plaintext_key } })).status, 401, `${name}: a new request does not pass`)
  }))
})

t.test('envoy: a WebSocket ends when it has lived for as long as it may', { skip: !isInstalled('envoy') && 'envoy is not installed' }, async (t) => {
  const { service, url: authz, credential: gatewayCredential } = await serve(t)
  const { plaintext_key } = await service.issue()
  const proxy = await startEnvoy(t, { authz, gatewayCredential, upstream: (await startEcho(t)).url, longestLife: '1s' })
  const { socket, echoes } = await openSocket(t, proxy, plaintext_key)
  const ended = once(socket, 'close')
  t.ok(await echoes())
  await ended
})

t.test('connections to the service are kept', { skip: SKIP }, async (t) => {
  const { service, listen } = await startListening(t)
  const options = { authz: await listen(), upstream: (await startEcho(t)).url, gatewayCredential: await service.gateway() }
  const { plaintext_key } = await service.issue()
  let connections = 0
  service.app.server.on('connection', () => connections++)
  for (const [name, startProxy] of installed()) {
    const proxy = await startProxy(t, options)
    connections = 0
    for (let i = 0; i < 20; i++) t.equal((await send(proxy, { headers: { 'X-Mecha-Key': plaintext_key } })).status, 200)
    t.ok(connections > 0 && connections < 10, `${name} made ${connections} for 20 requests`)
  }
})

interface Scene {
  readonly name: keyof typeof PROXIES
  readonly service: Service
  readonly echo: Echo
  readonly proxy: string
}

async function passesAndRefuses(t: Test, { name, service, echo, proxy }: Scene): Promise<void> {
  const { key, plaintext_key } = await service.issue({ scopes: ['orders:read', 'orders:write'] })
  const plain = await service.issue({ mecha: 'buyer^seoul_cafe' })
  const identity = { 'x-mecha-id': 'sales^acmecorp', 'x-mecha-handle': 'sales^acmecorp', 'x-mecha-crew': 'acmecorp', 'x-mecha-org': 'acme', 'x-mecha-scopes': 'orders:read orders:write', 'x-mecha-key-id': key.id }

  await t.test('a good key passes, in either header, and the application learns whose it is and never the key', async (t) => {
    for (const headers of [{ 'X-Mecha-Key': plaintext_key }, { Authorization: `Bearer ${plaintext_key}` }, { authorization: `bearer ${plaintext_key}` }, { 'X-Mecha-Key': '', Authorization: `Bearer ${plaintext_key}` }] as Record<string, string>[]) {
      const { status, arrived } = await send(proxy, { headers, path: '/orders/7?full=1&scope=admin&mecha=x' })
      t.equal(status, 200)
      t.match(arrived, { method: 'GET', url: '/orders/7?full=1&scope=admin&mecha=x' })
      t.same(ours(arrived!), identity)
      t.notOk(JSON.stringify(arrived).includes(plaintext_key), 'the key stays outside')
      t.equal(valuesOf(arrived!, 'authorization').length, 0)
    }
  })

  await t.test("the application's own Authorization passes beside X-Mecha-Key, unless it is a key", async (t) => {
    const own = await send(proxy, { headers: { 'X-Mecha-Key': plaintext_key, Authorization: 'Bearer of-the-application' } })
    t.same(valuesOf(own.arrived!, 'authorization'), ['Bearer of-the-application'])
    t.equal((await send(proxy, { headers: { 'X-Mecha-Key': plaintext_key, Authorization: `Bearer ${plain.plaintext_key}` } })).status, 401)
  })

  await t.test('a second key is refused, wherever it hides, and reaches nobody', async (t) => {
    const before = echo.arrived.length
    const [own, other] = [['X-Mecha-Key', plaintext_key], ['Authorization', `Bearer ${plain.plaintext_key}`]] as const
    const ofTheApplication = ['Authorization', 'Bearer of-the-application'] as const
    for (const [what, ...headers] of [
      ['two X-Mecha-Key', own, ['X-Mecha-Key', plain.plaintext_key]],
      ['the same X-Mecha-Key twice', own, ['x-mecha-key', plaintext_key]],
      ['one in Authorization', own, other],
      ['one in the second Authorization', own, ofTheApplication, other],
      ['one in the first Authorization', own, other, ofTheApplication],
      ['one in each Authorization', ['Authorization', `Bearer ${plaintext_key}`], other],
    ] as const) {
      const { status, arrived } = await send(proxy, { headers: [...headers] })
      // nginx takes no second Authorization at all. And before 1.23 it knows one X-Mecha-Key alone, the first: no other reaches anybody.
      if (name === 'nginx') t.ok(status === 400 || status === 401 || (what.includes('X-Mecha-Key') && ours(arrived!)['x-mecha-key-id'] === key.id), what)
      else t.equal(status, 401, what)
      t.notOk(arrived && JSON.stringify(arrived).includes('Bearer mecha_'), what)
    }
    if (name !== 'nginx') t.equal(echo.arrived.length, before)
  })

  await t.test('no key, a wrong one and another kind of credential are 401, with a challenge, and never reach the application', async (t) => {
    const before = echo.arrived.length
    for (const headers of [{}, { 'X-Mecha-Key': 'nonsense' }, { Authorization: 'Bearer nonsense' }, { Authorization: 'Basic eDp5' }, { Authorization: `Bearer ${await service.gateway()}` }] as Record<string, string>[]) {
      const { status, headers: answered } = await send(proxy, { headers })
      t.equal(status, 401)
      t.match(answered['www-authenticate'], /^Bearer realm="mecha-keys"/)
    }
    t.equal(echo.arrived.length, before)
  })

  await t.test('forged identity headers, in any spelling and as often as one likes, never get through', async (t) => {
    for (const forged of forgeries()) {
      const { status, arrived } = await send(proxy, { headers: [...forged, ['X-Mecha-Key', plaintext_key], ...forged] })
      t.equal(status, 200, forged[0]![0])
      t.same(ours(arrived!), identity, forged[0]![0])
      t.notMatch(JSON.stringify(arrived), /forged/)
    }
    // Of a key without scopes, the header is empty or not there: not the client's.
    const without = await send(proxy, { headers: [['X-Mecha-Scopes', 'forged'], ['X-Mecha-Key', plain.plaintext_key]] })
    t.equal(without.status, 200)
    t.notMatch(JSON.stringify(without.arrived), /forged/)
    t.notOk(ours(without.arrived!)['x-mecha-scopes'])
  })

  await t.test('a client cannot have a proxy drop the true ones, by calling them headers of the connection', async (t) => {
    const sendAs = (connection: string) => send(proxy, { headers: [['Connection', connection], ['X.Mecha.Id', 'forged'], ['X-Mecha-Key', plaintext_key]] })
    for (const connection of [IDENTITY.join(', '), 'close,X-MECHA-ID ,x-mecha-org', 'X-Gateway-Authorization']) {
      const { status, arrived } = await sendAs(connection)
      t.equal(status, 200, connection)
      t.same(arrived && ours(arrived), identity, connection)
    }
    // Its own key it may have dropped: it is asked for one then.
    const { status, arrived } = await sendAs('X-Mecha-Key')
    t.same(arrived ? ours(arrived) : status, arrived ? identity : 401)
  })

  await t.test('a credential of a gateway that a client sends is neither used nor passed on', async (t) => {
    const { status, arrived } = await send(proxy, { headers: { 'X-Mecha-Key': plaintext_key, 'X-Gateway-Authorization': 'Bearer forged', X_Gateway_Authorization: 'Bearer forged' } })
    t.equal(status, 200)
    t.notMatch(JSON.stringify(arrived), /forged/)
  })

  await t.test('a body reaches the application whole, with any method', async (t) => {
    const body = randomBytes(200_000).toString('base64')
    for (const method of ['POST', 'PUT', 'PATCH', 'DELETE']) {
      const { status, arrived } = await send(proxy, { method, body, headers: { 'X-Mecha-Key': plaintext_key, 'Content-Type': 'application/x-thing' } })
      t.equal(status, 200)
      t.match(arrived, { method })
      t.ok(arrived!.body === body, `${method}: to the byte`)
    }
    t.equal((await send(proxy, { method: 'POST', body })).status, 401)
  })

  await t.test('a connection can be upgraded, with a key', async (t) => {
    const upgrade = { Connection: 'Upgrade', Upgrade: 'websocket', 'Sec-WebSocket-Version': '13', 'Sec-WebSocket-Key': randomBytes(16).toString('base64') }
    const { socket, arrived } = await send(proxy, { path: '/socket', headers: { ...upgrade, 'X-Mecha-Key': plaintext_key } })
    socket!.write('over the socket')
    t.equal(String((await once(socket!, 'data'))[0]), 'over the socket')
    socket!.destroy()
    t.equal(arrived, undefined)
    t.same(ours(echo.arrived.at(-1)!), identity)
    t.equal((await send(proxy, { path: '/socket', headers: upgrade })).status, 401)
  })

  await t.test('a key that is revoked is 401 from then on', async (t) => {
    const ended = await service.issue()
    const headers = { 'X-Mecha-Key': ended.plaintext_key }
    t.equal((await send(proxy, { headers })).status, 200)
    await service.call('POST', `/v1/keys/${ended.key.id}/revoke`, { token: await service.token() })
    await applied(service.database)
    t.equal((await send(proxy, { headers })).status, 401)
  })

  await t.test('without the service nothing passes', async (t) => {
    const before = echo.arrived.length
    await service.app.close()
    const asked = [{ 'X-Mecha-Key': plaintext_key }, { 'X-Mecha-Key': plaintext_key, 'X-Mecha-Id': 'forged' }, {}].map((headers) => send(proxy, { headers: { ...headers } }))
    for (const { status } of await Promise.all(asked)) t.ok(status >= 500, String(status))
    t.equal(echo.arrived.length, before)
  })
}

/** The client says that it is somebody else, and has the proxy drop what says otherwise. */
async function readsTheTrueIdentity(t: Test, { service, proxy }: Pick<Scene, 'service' | 'proxy'>): Promise<void> {
  const { key, plaintext_key } = await service.issue({ scopes: ['orders:read'] })
  const identity = { HTTP_X_MECHA_ID: 'sales^acmecorp', HTTP_X_MECHA_HANDLE: 'sales^acmecorp', HTTP_X_MECHA_CREW: 'acmecorp', HTTP_X_MECHA_ORG: 'acme', HTTP_X_MECHA_SCOPES: 'orders:read', HTTP_X_MECHA_KEY_ID: key.id }
  for (const forged of forgeries())
    for (const more of [[], [['Connection', IDENTITY.join(', ')] as const]]) {
      const { status, answer } = await send(proxy, { headers: [...forged, ...more, ['X-Mecha-Key', plaintext_key]] })
      const read = Object.entries(JSON.parse(answer) as Record<string, string>).filter(([name]) => name.startsWith('HTTP_X_MECHA'))
      t.match({ status, read: Object.fromEntries(read) }, { status: 200, read: identity }, `${forged[0]![0]} ${more.join()}`)
      t.notMatch(answer, /forged/, forged[0]![0])
    }
}

/** Lists of headers under our names, in every spelling that an application may take for one of them; as many as a proxy takes at once. */
function forgeries(): (readonly [string, string])[][] {
  const names = [...IDENTITY, 'x-mecha-key', 'x-gateway-authorization']
  const spelled = SEPARATORS.map((separator) => names.flatMap((name) => [name.replaceAll('-', separator), name.replace('-', separator), name.replace(/-(?=[^-]*$)/, separator)]))
  const inOtherCase = [...IDENTITY, ...IDENTITY.map((name) => name.toUpperCase())]
  return [inOtherCase, ...spelled, SEPARATORS.map((separator) => `X${separator}MECHA${separator}ID`)].map((some) => some.map((name) => [name, 'forged'] as const))
}

async function startListening(t: Test, environment: Record<string, string> = {}) {
  const service = await startService(t, environment)
  const listen = () => service.app.listen({ host: '127.0.0.1', port: 0 })
  return { service, listen, door: await service.authz?.listen({ host: '127.0.0.1', port: 0 }) }
}

/** A WebSocket through a proxy, as far as these tests need one. */
async function openSocket(t: Test, proxy: string, key: string) {
  const upgrade = { Connection: 'Upgrade', Upgrade: 'websocket', 'Sec-WebSocket-Version': '13', 'Sec-WebSocket-Key': randomBytes(16).toString('base64') }
  const { socket } = await send(proxy, { path: '/socket', headers: { ...upgrade, 'X-Mecha-Key': key } })
  socket!.on('error', () => {})
  t.teardown(() => socket!.destroy())
  return {
    socket: socket!,
    echoes: async (): Promise<boolean> => {
      socket!.write('said')
      return String((await once(socket!, 'data'))[0]) === 'said'
    },
  }
}

interface Sent {
  readonly method?: string
  readonly path?: string
  readonly headers?: Record<string, string> | (readonly [string, string])[]
  readonly body?: string
}

/** Sends one request, and resolves to its answer and to what the application says of it, or to the upgraded connection. */
async function send(proxy: string, { method = 'GET', path = '/', headers = {}, body }: Sent) {
  const list = Array.isArray(headers) ? headers : Object.entries(headers)
  // As a flat list, so that a name can come twice and is sent as it is written.
  const sent = request(`${proxy}${path}`, { method, headers: ['Host', new URL(proxy).host, ...list.flat(), ...(body === undefined ? [] : ['Content-Length', String(body.length)])], agent: false })
  sent.end(body)
  const upgraded = once(sent, 'upgrade').then(([response, socket]) => ({ response: response as IncomingMessage, socket: socket as Socket }))
  const answered = once(sent, 'response').then(([response]) => ({ response: response as IncomingMessage, socket: undefined }))
  for (const one of [upgraded, answered]) one.catch(() => {})
  const { response, socket } = await Promise.any([upgraded, answered])
  const isOfApplication = !socket && response.statusCode === 200
  const answer = socket ? '' : await text(response)
  return { status: response.statusCode!, headers: response.headers, socket, answer, arrived: isOfApplication ? (JSON.parse(answer) as Arrived) : undefined }
}

/** What an application may take for the identity's headers: by their names in lower case, and each no more than once. */
function ours({ headers }: Arrived): Record<string, string> {
  const found = headers.filter(([name]) => LOOKS_LIKE_OURS.test(name)).map(([name, value]) => [name.toLowerCase(), value] as const)
  if (new Set(found.map(([name]) => name)).size !== found.length) throw new Error(`twice: ${JSON.stringify(found)}`)
  return Object.fromEntries(found)
}

function valuesOf({ headers }: Arrived, name: string): string[] {
  return headers.filter(([one]) => one.toLowerCase() === name).map(([, value]) => value)
}
