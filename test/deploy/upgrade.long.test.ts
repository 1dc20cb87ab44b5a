/** An upgrade as docs/deployment.md has it: two processes behind Caddy, of which one after the other is replaced. */

import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { parse } from 'yaml'
import { freePort } from '../../src/db/embedded/free-port.js'
import { PACKAGE_ROOT } from '../../src/package-root.js'
import { createDatabase } from '../helpers/database.js'
import { eventually } from '../helpers/eventually.js'
import { start, type Running } from '../helpers/process.js'
import { isInstalled, runProgram, temporaryFolder } from '../helpers/programs.js'
import { startService, testEnvironment } from '../helpers/service.js'

const page = readFileSync(join(PACKAGE_ROOT, 'docs/deployment.md'), 'utf8')
const CADDYFILE = /```\n(keys\.example\.com \{\n[^`]*)```/.exec(page)![1]!
const OVERRIDE = parse(/```yaml\n(services:\n[^`]*)```/.exec(page)![1]!)

t.test('who comes through the balancer notices nothing of an upgrade', { skip: !isInstalled('caddy') && 'caddy is not installed' }, async (t) => {
  const database = await createDatabase(t)
  const environment = testEnvironment(database, { DRAIN_DELAY: String(OVERRIDE.services['mecha-keys'].environment.DRAIN_DELAY) })
  const issuer = await startService(t, environment, database)
  const [{ plaintext_key: key }, credential] = [await issuer.issue(), await issuer.gateway()]

  const ports = [await freePort(), await freePort()]
  const replicas: Running[] = []
  /** Replaces the process on a port, or begins the first one there. */
  const replace = async (index: number) => {
    replicas[index]?.signal('SIGTERM')
    const ended = await replicas[index]?.ended()
    if (ended) t.equal(ended.code, 0)
    replicas[index] = start(t, ['serve'], { env: { ...environment, PORT: String(ports[index]) } })
    await eventually(() => isReady(`http://127.0.0.1:${ports[index]}`))
  }
  await Promise.all([replace(0), replace(1)])
  const proxy = await startBalancer()
  await eventually(() => isReady(proxy))

  let isOver = false
  const answers: string[] = []
  const gateways = Array.from({ length: 4 }, async () => {
    while (!isOver) answers.push(await verify(proxy))
  })
  await replace(0)
  await replace(1)
  isOver = true
  await Promise.all(gateways)
  t.ok(answers.length > 100, `${answers.length} answers`)
  t.same(answers.filter((answer) => answer !== 'valid'), [])

  /** Caddy with the page's configuration, in which nothing is replaced but addresses. */
  async function startBalancer(): Promise<string> {
    const folder = temporaryFolder(t)
    const [port, main] = [await freePort(), join(folder, 'main')]
    const site = CADDYFILE.replace('keys.example.com', `http://127.0.0.1:${port}`).replace('127.0.0.1:8080 127.0.0.1:8081', ports.map((one) => `127.0.0.1:${one}`).join(' '))
    writeFileSync(main, `{\n  admin off\n  auto_https off\n}\n${site}`)
    await runProgram(t, 'caddy', ['run', '--config', main, '--adapter', 'caddyfile'], port, { HOME: folder, XDG_CONFIG_HOME: folder, XDG_DATA_HOME: folder })
    return `http://127.0.0.1:${port}`
  }

  async function verify(url: string): Promise<string> {
    const response = await fetch(`${url}/v1/verify`, {
      method: 'POST',
      headers: { authorization: `Bearer ${credential}`, 'content-type': 'application/json' },
      body: JSON.stringify({ key }),
    })
    const text = await response.text()
    return response.status === 200 && JSON.parse(text).valid === true ? 'valid' : `${response.status} ${text}`
  }
})

async function isReady(url: string): Promise<boolean> {
  return fetch(`${url}/readyz`).then(({ status }) => status === 200, () => false)
}
