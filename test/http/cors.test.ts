/** Browser frontends of other origins, in a real browser where there is one. */

import type { Page } from 'playwright-core'
import t from 'tap'
import { NO_BROWSER, openBrowser, startFrontend } from '../helpers/browser.js'
import { contractOf, operationsOf, successOf, type Entry, type Operation } from '../helpers/contract.js'
import { startService, type Service } from '../helpers/service.js'

const ORIGIN = 'https://console.example.com'
/** What a browser shows of every answer, and what is its own business. */
const SHOWN_ANYWAY = ['cache-control', 'content-language', 'content-length', 'content-type', 'expires', 'last-modified', 'pragma']
const OF_THE_TRANSPORT = ['connection', 'date', 'keep-alive', 'transfer-encoding', 'vary']
/** Values for the headers that operations take, for one of them. */
const HEADERS: Record<string, (operation: Operation) => string> = { 'Idempotency-Key': ({ operationId }) => operationId, 'Prefer': () => 'wait=0' }

interface Called {
  readonly status: number
  readonly headers: Record<string, string>
  readonly body: any
}

t.test('a preflight is answered for what a path of the control plane takes, and for nothing else', async (t) => {
  const service = await startService(t, { CORS_ORIGINS: ORIGIN })
  const operations = operationsOf(contractOf(service.app))
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
  const documented = ofControlPlane(service).flatMap(({ operation }) => Object.values(operation.responses).flatMap((one) => Object.keys(one.headers ?? {})))
  const own = [...new Set(documented.map((name) => name.toLowerCase()))].filter((name) => !SHOWN_ANYWAY.includes(name))
  t.ok(own.includes('location') && own.includes('retry-after'))
  t.same(own.filter((name) => !exposed.includes(name)), [])
})

t.test('a browser', { skip: NO_BROWSER }, async (t) => {
  const origin = await startFrontend(t)
  const service = await startService(t, { CORS_ORIGINS: origin })
  const url = await service.app.listen({ port: 0, host: '127.0.0.1' })
  const browser = await openBrowser(t)
  const page = await browser.newPage()
  await page.goto(origin)

  t.test('calls every route of the control plane from another origin, and reads all that it answers', async (t) => {
    const token = await service.token()
    for (const { name, method, path, operation } of ofControlPlane(service)) {
      const { key } = await service.issue({ mecha: 'buyer^acmecorp' })
      const gatewayId = await createGateway(service)
      const filled = path.replace('{mecha}', 'buyer%5Eacmecorp').replace('{id}', path.startsWith('/v1/gateways/') ? gatewayId : key.id)
      const headers = headersOf(operation)
      const body = operation.requestBody?.content['application/json']!.example
      const sent = page.waitForResponse((response) => response.url() === url + filled && response.request().method() === method)
      const answer = await call(page, method, url + filled, { ...headers, Authorization: `Bearer ${token}`, 'X-Request-Id': 'of-the-frontend' }, body)
      t.equal(String(answer.status), successOf(operation), `${name}: ${JSON.stringify(answer.body)}`)
      const hidden = Object.keys(await (await sent).allHeaders()).filter((header) => !(header in answer.headers) && !header.startsWith('access-control-') && !OF_THE_TRANSPORT.includes(header))
      t.same(hidden, [], `${name}: nothing that was answered is hidden from the frontend`)
      t.equal(answer.headers['x-request-id'], 'of-the-frontend', name)

      const refused = await call(page, method, url + filled, { Authorization: 'Bearer nonsense' }, body)
      t.match(refused, { status: 401, headers: { 'www-authenticate': /^Bearer/ }, body: { code: 'unauthenticated' } }, `${name} without a token says why`)
    }
  })

  t.test('asks once, and not before every call', async (t) => {
    const { key } = await service.issue()
    const token = await service.token()
    const update = (name: string) => call(page, 'PATCH', `${url}/v1/keys/${key.id}`, { Authorization: `Bearer ${token}` }, { name })
    const before = preflights(service)
    for (const name of ['one', 'two', 'three']) t.match(await update(name), { status: 200, body: { name } })
    t.equal(preflights(service), before + 1)
  })

  t.test('gets nothing for a page of an origin that is not allowed, nor from the runtime plane', async (t) => {
    const { key, plaintext_key } = await service.issue()
    const token = await service.token()
    const elsewhere = await browser.newPage()
    await elsewhere.goto(await startFrontend(t))
    await t.rejects(call(elsewhere, 'GET', `${url}/v1/keys`, { Authorization: `Bearer ${token}` }), /Failed to fetch/)
    await t.rejects(call(elsewhere, 'POST', `${url}/v1/keys/${key.id}/revoke`, { Authorization: `Bearer ${token}` }, {}), /Failed to fetch/)
    await t.rejects(call(page, 'POST', `${url}/v1/verify`, { Authorization: `Bearer ${await service.gateway()}` }, { key: plaintext_key }), /Failed to fetch/)
    t.match(await service.verify(plaintext_key), { valid: true }, 'and nothing has happened')
  })
})

function ofControlPlane({ app }: Service): Entry[] {
  return operationsOf(contractOf(app)).filter(({ operation }) => operation.tags[0] === 'control')
}

/** Every header that an operation takes: one that is new needs a value above. */
function headersOf(operation: Operation): Record<string, string> {
  const names = (operation.parameters ?? []).filter((one) => one.in === 'header').map((one) => one.name)
  return Object.fromEntries(names.map((name) => [name, HEADERS[name]!(operation)]))
}

async function createGateway(service: Service): Promise<string> {
  return (await service.call('POST', '/v1/gateways', { token: await service.token(), body: { name: 'edge' } })).body.gateway.id
}

/** What a script of the page does, and sees of the answer. */
function call(page: Page, method: string, url: string, headers: Record<string, string>, body?: unknown): Promise<Called> {
  const text = body === undefined ? {} : { headers: { ...headers, 'Content-Type': 'application/json' }, body: JSON.stringify(body) }
  // As text: what runs in the page has names that are none of this program's.
  return page.evaluate(`(async () => {
    const answer = await fetch(${JSON.stringify(url)}, ${JSON.stringify({ method, headers, ...text })})
    return { status: answer.status, headers: Object.fromEntries(answer.headers), body: await answer.json() }
  })()`)
}

/** Preflights so far, by the service's own log. */
function preflights(service: Service): number {
  return service.logs().split('"method":"OPTIONS"').length - 1
}
