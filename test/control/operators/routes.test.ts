import Fastify, { type FastifyContextConfig } from 'fastify'
import t from 'tap'
import { SCOPES, type Scope } from '../../../src/control/operators/scopes.js'
import { requireOperator } from '../../../src/control/operators/require-operator.js'
import { contractOf } from '../../helpers/contract.js'
import { createDatabase } from '../../helpers/database.js'
import { NOTHING } from '../../helpers/refusals.js'
import { startService, type CallOptions, type Service } from '../../helpers/service.js'

type Method = Parameters<Service['call']>[0]
interface Operation {
  readonly security?: object[]
  readonly tags?: string[]
  readonly operationId?: string
}

/** The scope of each operation of the control plane, as the documentation promises it. */
const SCOPE_OF: Record<string, Scope> = {
  issueKey: 'keys:issue',
  listKeys: 'keys:read',
  getKey: 'keys:read',
  updateKey: 'keys:issue',
  rotateKey: 'keys:issue',
  revokeKey: 'keys:revoke',
  revokeKeysOfMecha: 'keys:revoke',
  createGateway: 'gateways:manage',
  listGateways: 'gateways:manage',
  revokeGateway: 'gateways:manage',
  listEvents: 'audit:read',
}
/** What anybody may ask; who exchanges or ends a key sends it in the body. */
const OPEN = ['exchangeKey', 'oauthMetadata', 'publicKeys', 'revokeToken', 'tokenStatus']
/** Where OAuth clients call, who know two ways to authenticate. */
const CHALLENGE_OF: Record<string, string> = { introspectToken: 'Bearer realm="mecha-keys", Basic realm="mecha-keys", charset="UTF-8"' }
/** What is answered without a credential; to a proxy, whose client has one of its own, an outage. */
const refusalOf = (id: string) => (id === 'authorize' ? { status: 403, code: 'gateway_unauthenticated' } : { status: 401, code: 'unauthenticated' })
const BODY_OF: Record<string, object> = {
  issueKey: { mecha: 'routes^acmecorp' },
  updateKey: { name: 'x' },
  createGateway: { name: 'edge' },
  verifyKey: { key: 'x' },
  verifyKeys: { keys: [] },
  takeNonce: { key_id: NOTHING.key, nonce: 'x'.repeat(16), expires_at: '2030-01-31T12:00:00Z' },
}

const service = await startService(t, {}, await createDatabase(t))
const all = routesOf()
const routes = all.filter(({ isOpen }) => !isOpen)
const control = routes.filter(({ plane }) => plane === 'control')

t.test('every documented operation of the control plane has a scope here', async (t) => {
  t.same(control.map(({ id }) => id).sort(), Object.keys(SCOPE_OF).sort())
  t.ok(routes.some(({ plane }) => plane === 'runtime'))
})

t.test('a route of the control plane that names no scope does not start', async (t) => {
  const plane = async (config: FastifyContextConfig) => {
    const app = Fastify()
    requireOperator(app, () => Promise.reject(new Error('nobody')))
    app.get('/v1/new', { config }, async () => 'anybody')
    await app.ready()
  }
  await t.rejects(plane({}), /GET \/v1\/new names no scope/)
  await t.resolves(plane({ scope: 'keys:read' }))
})

t.test('these routes ask for no credential beside what they are sent, and no others', async (t) => {
  t.same(all.filter(({ isOpen }) => isOpen).map(({ id }) => id).sort(), OPEN)
})

t.test('without a credential every other route of a plane answers 401 and says how to authenticate; the one for proxies, that they are none', async (t) => {
  for (const { method, url, id, options } of routes) {
    const answer = await service.call(method, url, options)
    const { status, code } = refusalOf(id)
    t.match(answer, { status, body: { code, status } }, id)
    t.equal(answer.headers['www-authenticate'], status === 401 ? (CHALLENGE_OF[id] ?? 'Bearer realm="mecha-keys"') : undefined, id)
    t.match(answer.headers, { 'content-type': CHALLENGE_OF[id] ? /^application\/json/ : /^application\/problem\+json/, 'cache-control': 'no-store' }, id)
  }
})

t.test('who is not authenticated learns nothing of what the request would be worth', async (t) => {
  for (const { method, url, id, options } of routes) {
    if (method === 'GET') continue
    for (const wrong of [{ ...options, body: { nonsense: true } }, { body: '{', headers: { 'content-type': 'application/json' } }, { body: 'x', headers: { 'content-type': 'text/plain' } }])
      t.equal((await service.call(method, url, wrong)).status, 401, id)
  }
  for (const url of ['/v1/keys/nonsense', '/v1/keys?limit=-1', `/v1/keys/${NOTHING.gateway}`]) t.equal((await service.call('GET', url)).status, 401, url)
})

t.test('HEAD is guarded as GET is', async (t) => {
  for (const { url, id } of control.filter(({ method }) => method === 'GET')) {
    t.equal((await service.call('HEAD', url)).status, 401, id)
    const others = SCOPES.filter((scope) => scope !== SCOPE_OF[id])
    t.equal((await service.call('HEAD', url, { token: await service.token({ scopes: others }) })).status, 403, id)
  }
})

t.test('every other scope together is not the scope that a route needs', async (t) => {
  for (const { method, url, id, options } of control) {
    const scope = SCOPE_OF[id]!
    const token = await service.token({ scopes: SCOPES.filter((other) => other !== scope) })
    const answer = await service.call(method, url, { ...options, token })
    t.match(answer, { status: 403, body: { code: 'insufficient_scope' } }, id)
    t.equal(answer.headers['www-authenticate'], `Bearer realm="mecha-keys", error="insufficient_scope", scope="${scope}"`, id)
  }
})

t.test('the scope that a route needs is enough for it', async (t) => {
  for (const { method, url, id, options } of control) {
    const { status } = await service.call(method, url, { ...options, token: await service.token({ scopes: [SCOPE_OF[id]!] }) })
    t.ok([200, 201, 404].includes(status), `${id} answers ${status}`)
  }
})

t.test('a Mecha key opens no route: it is no operator token and no gateway credential', async (t) => {
  const { plaintext_key: token } = await service.issue({ mecha: 'routes^acmecorp' })
  for (const { method, url, id, options } of routes) t.equal((await service.call(method, url, { ...options, token })).status, refusalOf(id).status, id)
})

function routesOf() {
  const { paths } = contractOf() as { paths: Record<string, Record<string, Operation>> }
  return Object.entries(paths).flatMap(([path, operations]) =>
    Object.entries(operations).flatMap(([method, { tags = [], operationId: id = path, security }]) => {
      const plane = tags.find((tag) => tag === 'control' || tag === 'runtime')
      const url = path.replace('{mecha}', 'nobody%5Eacmecorp').replace('{id}', path.includes('gateways') ? NOTHING.gateway : NOTHING.key)
      const options: CallOptions = { ...(BODY_OF[id] && { body: BODY_OF[id] }) }
      return plane ? [{ id, plane, isOpen: security?.length === 0, url, method: method.toUpperCase() as Method, options }] : []
    }),
  )
}
