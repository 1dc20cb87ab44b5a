/** Browser frontends of other origins, in a real browser. */

import type { Page } from 'playwright-core'
import t from 'tap'
import { NO_BROWSER, openBrowser, startFrontend } from '../helpers/browser.js'
import { contractOf, controlPlaneOf, successOf, type Operation } from '../helpers/contract.js'
import { startService, type Service } from '../helpers/service.js'

/** Headers that are a browser's own business. */
const OF_THE_TRANSPORT = ['connection', 'date', 'keep-alive', 'transfer-encoding', 'vary']
/** Values for the headers that operations take, for one of them. */
const HEADERS: Record<string, (operation: Operation) => string> = { 'Idempotency-Key': ({ operationId }) => operationId, 'Prefer': () => 'wait=0' }

interface Called {
  readonly status: number
  readonly headers: Record<string, string>
  readonly body: any
}

t.test('a browser', { skip: NO_BROWSER }, async (t) => {
  const origin = await startFrontend(t)
  const service = await startService(t, { CORS_ORIGINS: origin })
  const url = await service.app.listen({ port: 0, host: '127.0.0.1' })
  const browser = await openBrowser(t)
  const page = await browser.newPage()
  await page.goto(origin)

  t.test('calls every route of the control plane from another origin, and reads all that it answers', async (t) => {
    const token = await service.token()
    for (const { name, method, path, operation } of controlPlaneOf(contractOf())) {
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
