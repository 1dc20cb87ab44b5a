import { once } from 'node:events'
import { connect, createServer, type AddressInfo, type Socket } from 'node:net'
import t, { type Test } from 'tap'
import { createDatabase, type TestDatabase } from './helpers/database.js'
import { startService, type Answer, type Service } from './helpers/service.js'

/** A wire between the service and its database, which a test can cut, or make dead and silent. */
interface Wire {
  readonly database: TestDatabase
  cut(): void
  silence(): void
  restore(): void
}

/** The bound on any one answer: DATABASE_TIMEOUT is a second, and a client's own time-out comes a second later. */
const HUNG_MS = 10_000

t.test('a database that is gone makes every plane say so, and its return is noticed', async (t) => {
  const wire = await layWire(t)
  const service = await startService(t, { DATABASE_TIMEOUT: '1s' }, wire.database)
  const { key, plaintext_key, token, gateway } = await settle(service)

  wire.cut()
  t.match(await service.call('GET', '/livez'), { status: 200, body: { alive: true } })
  t.match(await service.call('GET', '/readyz'), {
    status: 503,
    body: { ready: false, checks: { database_control: 'the database does not answer', database_runtime: 'the database does not answer', draining: 'ok' } },
  })
  for (const answer of await everyCall(service, { id: key.id, plaintext_key, token, gateway })) unavailable(t, answer)
  t.match((await service.call('GET', '/metrics')).text, /mecha_keys_ready 0\n/)
  t.notOk(service.logs().includes(plaintext_key), 'no key in what was logged about it')

  wire.restore()
  t.match(await service.call('GET', '/readyz'), { status: 200, body: { ready: true } })
  t.match(await service.verify(plaintext_key, {}, gateway), { valid: true, key_id: key.id })
  t.match(await service.call('GET', '/v1/keys', { token }), { status: 200, body: { keys: [{ id: key.id }] } }, 'what was refused did not happen by half')
})

t.test('a database that takes connections and never answers holds nobody up', async (t) => {
  const wire = await layWire(t)
  const service = await startService(t, { DATABASE_TIMEOUT: '1s', DATABASE_POOL_SIZE: '2' }, wire.database)
  const { key, plaintext_key, token, gateway } = await settle(service)

  wire.silence()
  // More than the pool has connections: whoever waits for one waits no longer either.
  const calls = [...Array.from({ length: 3 }, () => everyCall(service, { id: key.id, plaintext_key, token, gateway }))]
  const ready = service.call('GET', '/readyz')
  t.match(await service.call('GET', '/livez'), { status: 200 }, 'the process is alive all the while')
  for (const answer of (await soon(Promise.all(calls))).flat()) unavailable(t, answer)
  t.match(await soon(ready), { status: 503, body: { ready: false, checks: { database_control: 'the database does not answer' } } })

  wire.restore()
  t.match(await soon(service.verify(plaintext_key, {}, gateway)), { valid: true })
  t.match(await soon(service.call('GET', '/readyz')), { status: 200 })
})

t.test('a connection that breaks in the middle of a request is an outage and not an error of ours', async (t) => {
  const wire = await layWire(t)
  const service = await startService(t, { DATABASE_TIMEOUT: '5s' }, wire.database)
  const { plaintext_key, token, gateway } = await settle(service)
  // The wire is silent first, so that the requests are on their way when it is cut.
  wire.silence()
  const answers = [service.call('POST', '/v1/verify', { token: gateway, body: { key: plaintext_key } }), service.call('POST', '/v1/keys', { token, body: { mecha: 'sales^acmecorp' } })]
  const queries = () => service.app.inject('/metrics').then(({ body }) => body)
  t.match(await queries(), /mecha_keys_ready/)
  wire.cut()
  for (const answer of await soon(Promise.all(answers))) unavailable(t, answer)
  wire.restore()
  t.match((await service.verify(plaintext_key, {}, gateway)).valid, true)
})

/** One key, one gateway and one token, made while all is well. */
async function settle(service: Service) {
  const [{ key, plaintext_key }, gateway, token] = [await service.issue(), await service.gateway(), await service.token()]
  if (!(await service.verify(plaintext_key, {}, gateway)).valid) throw new Error('the key is not valid to begin with')
  return { key, plaintext_key, gateway, token }
}

/** One call of each kind that needs the database. */
function everyCall(service: Service, { id, plaintext_key, token, gateway }: { id: string; plaintext_key: string; token: string; gateway: string }): Promise<Answer[]> {
  return soon(
    Promise.all([
      service.call('POST', '/v1/verify', { token: gateway, body: { key: plaintext_key } }),
      service.call('GET', '/v1/keys', { token }),
      service.call('POST', '/v1/keys', { token, body: { mecha: 'sales^acmecorp' } }),
      service.call('POST', `/v1/keys/${id}/revoke`, { token, body: {} }),
      service.call('GET', '/v1/events', { token }),
    ]),
  )
}

function unavailable(t: Test, { status, headers, body }: Answer): void {
  t.match({ status, headers, body }, { status: 503, headers: { 'retry-after': '1', 'content-type': 'application/problem+json' }, body: { code: 'database_unavailable' } })
}

/** Fails when something hangs. How quick it is beyond that is not asserted. */
async function soon<T>(work: Promise<T>): Promise<T> {
  let timer: NodeJS.Timeout
  const late = new Promise<never>((_resolve, reject) => {
    timer = setTimeout(() => reject(new Error('it hangs')), HUNG_MS)
  })
  return Promise.race([work, late]).finally(() => clearTimeout(timer))
}

/** A database of the test's own, reached through a proxy on this side of the wire. */
async function layWire(t: Test): Promise<Wire> {
  const direct = await createDatabase(t)
  const { hostname, port } = new URL(direct.control)
  const open = new Set<Socket>()
  let state: 'whole' | 'cut' | 'silent' = 'whole'
  const proxy = createServer((near) => {
    if (state === 'cut') return void near.destroy()
    const far = connect(Number(port), hostname)
    let isDead = false
    for (const [from, to] of [[near, far], [far, near]] as const) {
      open.add(from)
      from.on('error', () => {}).on('close', () => (open.delete(from), to.destroy()))
      from.on('data', (bytes) => {
        isDead ||= state === 'silent'
        if (!isDead) to.write(bytes)
      })
    }
  }).listen(0, '127.0.0.1')
  await once(proxy, 'listening')
  const hangUp = () => open.forEach((socket) => socket.destroy())
  t.teardown(() => (hangUp(), proxy.close()))
  const through = (url: string) => Object.assign(new URL(url), { host: `127.0.0.1:${(proxy.address() as AddressInfo).port}` }).href
  return {
    database: { ...direct, control: through(direct.control), runtime: through(direct.runtime) },
    cut: () => ((state = 'cut'), hangUp()),
    silence: () => void (state = 'silent'),
    // New connections pass. Those that were silenced stay so for ever, as when a firewall or a server lost them.
    restore: () => void (state = 'whole'),
  }
}
