/** What people read, in a real browser: `/docs` and the pages of errors. */

import type { Page } from 'playwright-core'
import t from 'tap'
import { NO_BROWSER, openBrowser } from '../helpers/browser.js'
import { startService } from '../helpers/service.js'

t.test('in a browser', { skip: NO_BROWSER }, async (t) => {
  const service = await startService(t)
  const url = await service.app.listen({ port: 0, host: '127.0.0.1' })
  const page = await (await openBrowser(t)).newPage()
  const complaints: string[] = []
  page.on('console', (message) => message.type() === 'error' && complaints.push(message.text()))
  page.on('pageerror', (error) => complaints.push(error.message))

  await t.test('/docs says whose it is, and fills in nothing that nobody chose', async (t) => {
    await page.goto(url)
    t.equal(page.url(), `${url}/docs/`)
    await page.locator('.opblock').first().waitFor()
    t.equal(await page.title(), 'mecha-keys')
    t.notMatch(await page.locator('body').innerText(), /fastify|smartbear|swagger/i)
    for (const id of ['issueKey', 'listKeys', 'rotateKey', 'revokeKey', 'listGateways', 'listEvents']) {
      const operation = await open(page, id)
      const filled: string[] = []
      for (const row of await operation.locator('tr[data-param-in="query"], tr[data-param-in="header"]').all()) {
        const name = (await row.getAttribute('data-param-name'))!
        const value = await row.locator('input, select').first().inputValue()
        if (value !== '') filled.push(`${name}: ${value}`)
      }
      t.same(filled.filter((one) => one !== 'limit: 50'), [], id)
    }
  })

  await t.test('/docs shows each error\'s own sample, and carries out what it is told to', async (t) => {
    const operation = page.locator('#operations-control-issueKey')
    for (const [status, code] of [['401', 'unauthenticated'], ['403', 'insufficient_scope'], ['404', 'not_found'], ['422', 'idempotency_key_reused']] as const)
      t.match(await operation.locator(`tr.response[data-code="${status}"] .example`).first().innerText(), `/errors/${code}`, status)
    await page.getByRole('button', { name: 'Authorize' }).first().click()
    await page.locator('#auth-bearer-value').first().fill(await service.token())
    await page.locator('.auth-container form').first().getByRole('button', { name: 'Apply credentials' }).click()
    await page.locator('.modal-ux').getByRole('button', { name: 'Close', exact: true }).first().click()
    await operation.getByRole('button', { name: 'Execute' }).click()
    t.match(await operation.locator('.live-responses-table .response .microlight, .live-responses-table .response pre').first().innerText(), 'plaintext_key')
  })

  await t.test('a page of an error is read as one', async (t) => {
    await page.goto(`${url}/errors/database_unavailable`)
    t.equal(await page.locator('h1').innerText(), 'database_unavailable (503)')
    t.not(await page.locator('body').evaluate('(body) => getComputedStyle(body).maxWidth'), 'none', 'in its own style')
    await page.getByRole('link', { name: 'overloaded' }).click()
    t.equal(await page.locator('h1').innerText(), 'overloaded (503)')
  })

  t.same(complaints, [], 'the browser has nothing to say against what was served')
})

/** Unfolds an operation, and what it would be tried with. */
async function open(page: Page, operationId: string) {
  const operation = page.locator(`.opblock[id$="-${operationId}"]`)
  await operation.locator('.opblock-summary-control').click()
  await operation.getByRole('button', { name: 'Try it out' }).click()
  return operation
}
