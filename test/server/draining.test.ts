import { once } from 'node:events'
import { spawn } from 'node:child_process'
import { connect } from 'node:net'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import t, { type Test } from 'tap'
import { signOperatorToken } from '../../src/control/operators/builtin-issuer.js'
import { loadConfig } from '../../src/config.js'
import { freePort } from '../../src/db/embedded/free-port.js'
import { PACKAGE_ROOT } from '../../src/package-root.js'
import { createDatabase } from '../helpers/database.js'
import { eventually } from '../helpers/eventually.js'
import { start } from '../helpers/process.js'
import { testEnvironment } from '../helpers/service.js'

const GONE_WITHIN_MS = 30_000

t.test('a stopping service answers what it was asked, and says meanwhile that it is not ready', async (t) => {
  const { service, url, token } = await deployed(t, { DRAIN_DELAY: '1' })
  const request = await halfARequest(t, url, token)
  service.signal('SIGTERM')
  await service.line(/"msg":"draining"/)
  const ready = await fetch(`${url}/readyz`)
  t.match({ status: ready.status, body: await ready.json() }, { status: 503, body: { ready: false, checks: { draining: 'draining' } } })
  t.match(await request.finish(), /^HTTP\/1\.1 201 /, 'the request gets its answer')
  t.match(await service.ended(), { code: 0, signal: null })
})

t.test('a request whose body arrives after the listener has closed still gets its answer', async (t) => {
  const { service, url, token } = await deployed(t)
  const request = await halfARequest(t, url, token)
  service.signal('SIGTERM')
  await refusesConnections(url)
  t.match(await request.finish(), /^HTTP\/1\.1 201 /)
  t.match(await service.ended(), { code: 0, signal: null })
})

t.test('a second signal ends at once', async (t) => {
  const { service, url, token } = await deployed(t, { DRAIN_DELAY: '300' })
  await halfARequest(t, url, token)
  service.signal('SIGTERM')
  await service.line(/"msg":"draining"/)
  service.signal('SIGTERM')
  t.match(await service.ended(), { code: 1 }, 'without waiting for the request, nor for five minutes')
})

/** A service on a database of the test's server, as it is deployed. */
async function deployed(t: Test, environment: Record<string, string> = {}) {
  const env = testEnvironment(await createDatabase(t), environment)
  const service = start(t, ['serve'], { env: { ...env, PORT: '0' } })
  const url = (await service.line(/listening at (http:\/\/[\d.:]+)/))[1]!
  const token = await signOperatorToken(loadConfig(env), { org: 'acme', scopes: ['keys:issue'], subject: 'alice', ttlSeconds: 600 })
  return { service, url, token }
}

/** A request of which the service has the headers and a part of the body. */
async function halfARequest(t: Test, url: string, token: string) {
  const body = JSON.stringify({ mecha: 'sales^acmecorp' })
  const socket = connect(Number(new URL(url).port), '127.0.0.1')
  t.teardown(() => socket.destroy())
  let answer = ''
  socket.setEncoding('utf8').on('data', (chunk: string) => (answer += chunk)).on('error', () => {})
  const closed = once(socket, 'close')
  await once(socket, 'connect')
  // What is answered to the first request on this connection says that the second one's beginning has arrived with it.
  socket.write('GET /livez HTTP/1.1\r\nHost: x\r\n\r\n'
    + `POST /v1/keys HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer ${token}\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: ${body.length}\r\n\r\n${body.slice(0, 10)}`)
  while (!answer.includes('"alive":true')) await once(socket, 'data')
  answer = ''
  return {
    async finish(): Promise<string> {
      socket.write(body.slice(10))
      await closed
      return answer
    },
  }
}

async function refusesConnections(url: string): Promise<void> {
  const deadline = Date.now() + GONE_WITHIN_MS
  while (await fetch(`${url}/livez`, { headers: { connection: 'close' } }).then(() => true, () => false)) {
    if (Date.now() > deadline) throw new Error('it still listens')
    await sleep(20)
  }
}

t.test('a service whose log nobody reads answers all the same, and ends when it is told to', async (t) => {
  const port = await freePort()
  const child = spawn(process.execPath, [join(PACKAGE_ROOT, 'dist', 'src', 'main.js'), 'serve'], {
    env: { PATH: process.env['PATH'], ...testEnvironment(await createDatabase(t)), PORT: String(port), LOG_LEVEL: 'debug' },
    stdio: ['ignore', 'pipe', 'inherit'],
  })
  t.teardown(() => child.kill('SIGKILL'))
  const ask = () => fetch(`http://127.0.0.1:${port}/livez`).then(({ ok }) => ok, () => false)
  await eventually(ask)
  // More than a pipe holds, some times over: a request's line, of which there is one for `/livez` at `debug` alone, has more than a hundred bytes.
  let answered = 0
  while (answered < 5000 && (await ask())) answered++
  t.equal(answered, 5000)
  const exited = once(child, 'exit', { signal: AbortSignal.timeout(GONE_WITHIN_MS) })
  child.kill('SIGTERM')
  t.same(await exited, [0, null])
})
