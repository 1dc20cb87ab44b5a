import t, { type Test } from 'tap'
import { applied, createDatabase, type TestDatabase } from '../helpers/database.js'
import { eventually } from '../helpers/eventually.js'
import { fresh, startService, type Answer, type Service } from '../helpers/service.js'
import { layWire, type Wire } from '../helpers/wire.js'

/** The bound on any one answer: DATABASE_TIMEOUT is a second, and a client's own time-out comes a second later. */
const HUNG_MS = 10_000

t.test('a database that is gone makes every plane say so, and its return is noticed', async (t) => {
  const { wire, database } = await wiredDatabase(t)
  // A slow machine takes longer for every call than what is known would hold.
  const service = await startService(t, { DATABASE_TIMEOUT: '1s', REVOCATION_MAX_STALENESS: '1m' }, database)
  const { key, plaintext_key, stranger, token, gateway } = await settle(service)

  wire.cut()
  t.match(await service.call('GET', '/livez'), { status: 200, body: { alive: true } })
  t.match(await service.call('GET', '/readyz'), {
    status: 503,
    body: { ready: false, checks: { database_control: 'the database does not answer', database_runtime: 'the database does not answer', draining: 'ok' } },
  })
  for (const answer of await everyCall(service, { id: key.id, stranger, token, gateway })) unavailable(t, answer)
  t.match(await service.verify(plaintext_key, {}, gateway), { valid: true }, 'what is known is answered from memory')
  t.match((await service.call('GET', '/metrics')).text, /mecha_keys_ready 0\n/)
  t.notOk(service.logs().includes(plaintext_key), 'no key in what was logged about it')

  wire.restore()
  await eventually(async () => (await service.call('GET', '/readyz')).status === 200)
  t.match(await service.verify(plaintext_key, {}, gateway), { valid: true, key_id: key.id })
  t.match(await service.call('GET', '/v1/keys', { token }), { status: 200, body: { keys: [{}, { id: key.id }] } }, 'what was refused did not happen by half')
})

t.test('a database that takes connections and never answers holds nobody up', async (t) => {
  const { wire, database } = await wiredDatabase(t)
  const service = await startService(t, { DATABASE_TIMEOUT: '1s', DATABASE_POOL_SIZE: '2', REVOCATION_MAX_STALENESS: '1m' }, database)
  const { key, plaintext_key, stranger, token, gateway } = await settle(service)

  wire.silence()
  // More than the pool has connections: whoever waits for one waits no longer either.
  const calls = [...Array.from({ length: 3 }, () => everyCall(service, { id: key.id, stranger, token, gateway }))]
  const ready = service.call('GET', '/readyz')
  t.match(await service.call('GET', '/livez'), { status: 200 }, 'the process is alive all the while')
  for (const answer of (await soon(Promise.all(calls))).flat()) unavailable(t, answer)
  t.match(await soon(ready), { status: 503, body: { ready: false, checks: { database_control: 'the database does not answer' } } })

  wire.restore()
  t.match(await soon(service.verify(plaintext_key, {}, gateway)), { valid: true })
  await eventually(async () => (await soon(service.call('GET', '/readyz'))).status === 200)
})

t.test('a connection that breaks in the middle of a request is an outage and not an error of ours', async (t) => {
  const { wire, database } = await wiredDatabase(t)
  const service = await startService(t, { DATABASE_TIMEOUT: '5s' }, database)
  const { plaintext_key, stranger, token, gateway } = await settle(service)
  // The wire is silent first, so that the requests are on their way when it is cut.
  wire.silence()
  const answers = [service.call('POST', '/v1/verify', { token: gateway, body: { key: stranger } }), service.call('POST', '/v1/keys', { token, body: { mecha: 'sales^acmecorp' } })]
  const queries = () => service.app.inject('/metrics').then(({ body }) => body)
  t.match(await queries(), /mecha_keys_ready/)
  wire.cut()
  for (const answer of await soon(Promise.all(answers))) unavailable(t, answer)
  wire.restore()
  t.match((await service.verify(plaintext_key, {}, gateway)).valid, true)
})

for (const how of ['cut', 'silent'] as const)
  t.test(`a connection that is ${how} at whichever answer of a transaction is an outage, for every call of operators`, async (t) => {
    const reached = new Map<string, number>()
    // One service for each place where it may fail: they wait for their time-outs at the same time.
    await Promise.all(Array.from({ length: 9 }, (_, pieces) => failInTransaction(t, pieces, how, reached)))
    // What a function of the database does fails before it or after.
    const isOneStatement = (what: string) => ['issue', 'rotate', 'revoke', 'revoke a gateway'].includes(what)
    for (const { what } of await operatorCalls()) t.ok(reached.get(what)! > (isOneStatement(what) ? 0 : 3), `${what} failed in the middle of its transaction, at ${reached.get(what)} places`)
  })

/** Lets every connection fail after so many pieces of answers, makes every call, and looks that each is done or is refused as an outage. */
async function failInTransaction(t: Test, pieces: number, how: 'cut' | 'silent', reached: Map<string, number>): Promise<void> {
  const { wire, database } = await wiredDatabase(t)
  const service = await startService(t, { DATABASE_TIMEOUT: '1s', PLANES: 'control' }, database)
  const token = await service.token()
  for (const { what, method, url, body, headers } of await operatorCalls(service)) {
    // What is left of the call before does not fail any more. One connection in the pool is open then, and the next call takes it: a slow
    // machine needs more than one attempt for that.
    wire.failAfter(Infinity, how)
    let isOpen: Answer
    await eventually(async () => (isOpen = await service.call('GET', '/v1/keys', { token })).status === 200)
    t.match(isOpen!, { status: 200 })
    wire.failAfter(pieces, how)
    const answer = await soon(service.call(method, url, { token, ...(body && { body }), ...(headers && { headers }) }))
    if (answer.status === 503) {
      unavailable(t, answer)
      reached.set(what, (reached.get(what) ?? 0) + 1)
    } else t.ok(answer.status < 300, `${what} after ${pieces} pieces: ${answer.status} ${answer.text}`)
  }
}

interface OperatorCall {
  readonly what: string
  readonly method: 'GET' | 'POST' | 'PATCH'
  readonly url: string
  readonly body?: object
  readonly headers?: Record<string, string>
}

/** Every call of the control plane that writes, on keys of its own. */
async function operatorCalls(service?: Service): Promise<OperatorCall[]> {
  // A slow machine needs more than one attempt within the second that the database is waited for.
  const made = async (url: string, body: object) => {
    if (!service) return undefined
    const token = await service.token()
    let answer: Answer
    await eventually(async () => (answer = await service.call('POST', url, { token, body })).status === 201)
    return answer!.body
  }
  const id = async () => (await made('/v1/keys', { mecha: 'sales^acmecorp' }))?.key.id as string
  const gateway = async () => (await made('/v1/gateways', { name: 'edge' }))?.gateway.id as string
  const [updated, rotated, revoked, edge] = [await id(), await id(), await id(), await gateway()]
  return [
    { what: 'issue', method: 'POST', url: '/v1/keys', body: { mecha: 'sales^acmecorp' }, headers: { 'idempotency-key': 'one' } },
    { what: 'update', method: 'PATCH', url: `/v1/keys/${updated}`, body: { enabled: false } },
    { what: 'rotate', method: 'POST', url: `/v1/keys/${rotated}/rotate`, body: {} },
    { what: 'revoke', method: 'POST', url: `/v1/keys/${revoked}/revoke`, body: {} },
    { what: 'create a gateway', method: 'POST', url: '/v1/gateways', body: { name: 'another' } },
    { what: 'revoke a gateway', method: 'POST', url: `/v1/gateways/${edge}/revoke`, body: {} },
    { what: 'kill switch', method: 'POST', url: `/v1/mechas/${encodeURIComponent('sales^acmecorp')}/revoke-keys`, body: {} },
  ]
}

/** Made while all is well: a key that has been verified and one that has not, a gateway, a token. */
async function settle(service: Service) {
  const [{ key, plaintext_key }, { plaintext_key: stranger }] = [await service.issue(), await service.issue()]
  const [gateway, token] = [await service.gateway(), await service.token()]
  if (!(await service.verify(plaintext_key, {}, gateway)).valid) throw new Error('the key is not valid to begin with')
  await applied(service.database)
  // A first confirmation is in the row before its answer is here, and the poll after it is the first that vouches.
  await fresh(service)
  return { key, plaintext_key, stranger, gateway, token }
}

/** One call of each kind that needs the database. */
function everyCall(service: Service, { id, stranger, token, gateway }: { id: string; stranger: string; token: string; gateway: string }): Promise<Answer[]> {
  return soon(
    Promise.all([
      service.call('POST', '/v1/verify', { token: gateway, body: { key: stranger } }),
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

/** A database of the test's own, reached through a wire. */
async function wiredDatabase(t: Test): Promise<{ wire: Wire; database: TestDatabase }> {
  const direct = await createDatabase(t)
  const wire = await layWire(t, direct.control)
  return { wire, database: { ...direct, control: wire.through(direct.control), runtime: wire.through(direct.runtime) } }
}
