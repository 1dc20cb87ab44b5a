/** Browser frontends of other origins; `cors.long.test.ts` has a real browser. */

import t from 'tap'
import { contractOf, controlPlaneOf, operationsOf } from '../helpers/contract.js'
import { startService } from '../helpers/service.js'

const ORIGIN = 'https://console.example.com'
/** What a browser shows of every answer. */
const SHOWN_ANYWAY = ['cache-control', 'content-language', 'content-length', 'content-type', 'expires', 'last-modified', 'pragma']

t.test('a preflight is answered for what a path of the control plane takes, and for nothing else', async (t) => {
  const service = await startService(t, { CORS_ORIGINS: ORIGIN })
  const operations = operationsOf(contractOf())
  const preflight = (url: string, method: string, origin = ORIGIN) =>
    service.call('OPTIONS', url, { headers: { origin, 'access-control-request-method': method, 'access-control-request-headers': 'authorization,content-type' } })
  const corsOf = ({ headers }: { headers: object }) => Object.keys(headers).filter((name) => name.startsWith('access-control-'))

  for (const { name, path, method, operation } of operations.filter((one) => one.path !== '/v1/authz')) {
    const answer = await preflight(path.replace(/\{\w+\}/g, 'x'), method)
    if (operation.tags[0] !== 'control') {
      t.same([answer.status, corsOf(answer)], [405, []], `${name} is no business of browsers`)
      continue
    }
    const methods = operations.filter((one) => one.path === path).flatMap((one) => (one.method === 'GET' ? ['GET', 'HEAD'] : [one.method])).sort()
    t.match(answer, { status: 204, headers: { 'access-control-allow-origin': ORIGIN, 'access-control-max-age': '7200', 'access-control-allow-headers': 'authorization,content-type' } }, name)
    t.equal(answer.headers['access-control-allow-methods'], methods.join(', '), name)
  }
  t.same(corsOf(await preflight('/v1/authz', 'GET')), [])
  t.equal((await preflight('/v1/nowhere', 'GET')).status, 404)
  t.match(await service.call('OPTIONS', '/v1/keys'), { status: 405, headers: { allow: 'GET, HEAD, POST' } }, 'what is no preflight is a method like any other')
  t.equal((await preflight('/v1/keys', 'POST', 'https://evil.example.com')).headers['access-control-allow-origin'], undefined)

  const none = await startService(t, {}, service.database)
  t.same(corsOf(await none.call('GET', '/v1/keys', { headers: { origin: ORIGIN } })), [], 'no origin is allowed unless one is set')
  t.equal((await none.call('OPTIONS', '/v1/keys', { headers: { origin: ORIGIN, 'access-control-request-method': 'GET' } })).status, 405)
})

t.test('a frontend may read every header that the contract gives to the control plane\'s answers', async (t) => {
  const service = await startService(t, { CORS_ORIGINS: ORIGIN })
  const { headers } = await service.call('GET', '/v1/keys', { headers: { origin: ORIGIN } })
  const exposed = String(headers['access-control-expose-headers']).toLowerCase().split(', ')
  const documented = controlPlaneOf(contractOf()).flatMap(({ operation }) => Object.values(operation.responses).flatMap((one) => Object.keys(one.headers ?? {})))
  const own = [...new Set(documented.map((name) => name.toLowerCase()))].filter((name) => !SHOWN_ANYWAY.includes(name))
  t.ok(own.includes('location') && own.includes('retry-after'))
  t.same(own.filter((name) => !exposed.includes(name)), [])
})

t.test('a frontend reads why there is nothing at a path, and that a path does not take a method or is too long', async (t) => {
  const service = await startService(t, { CORS_ORIGINS: ORIGIN })
  const refusals = { '/v1/nowhere': 404, '/v1/keys/key_x': 405, '/v1/verify/nowhere': 404, [`/v1/keys/${'x'.repeat(300)}`]: 414, '/v1/keys/%zz': 400 }
  for (const [url, status] of Object.entries(refusals)) {
    const ask = (origin?: string) => service.call('POST', url, { headers: { ...(origin && { origin }) } })
    t.match(await ask(ORIGIN), { status, headers: { 'access-control-allow-origin': ORIGIN, 'access-control-expose-headers': /X-Request-Id/, 'vary': 'Origin', 'content-type': /^application\/problem\+json/ } }, url)
    for (const origin of [undefined, 'https://evil.example.com']) {
      const { headers } = await ask(origin)
      t.same([headers['access-control-allow-origin'], headers['vary']], [undefined, 'Origin'], `${url}, of ${origin}`)
    }
  }
  const runtime = await startService(t, { CORS_ORIGINS: ORIGIN, PLANES: 'runtime' }, service.database)
  t.equal((await runtime.call('GET', '/v1/nowhere', { headers: { origin: ORIGIN } })).headers['access-control-allow-origin'], undefined, 'the runtime plane is no business of browsers')
})
