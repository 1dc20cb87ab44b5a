/** How a process ends: what may keep it from that, and what is done before. `shutdown.long.test.ts` has what only root can arrange. */

import { once } from 'node:events'
import { connect } from 'node:net'
import { join } from 'node:path'
import { sql } from 'kysely'
import t, { type Test } from 'tap'
import { signOperatorToken } from '../../src/control/operators/builtin-issuer.js'
import { loadConfig } from '../../src/config.js'
import { PACKAGE_ROOT } from '../../src/package-root.js'
import { LAST_STEPS_MS } from '../../src/server/serve.js'
import { createDatabase } from '../helpers/database.js'
import { eventually } from '../helpers/eventually.js'
import { start, startCommand } from '../helpers/process.js'
import { testEnvironment } from '../helpers/service.js'

const MAIN = join(PACKAGE_ROOT, 'dist', 'src', 'main.js')
/** The time that a loaded machine takes to start what takes no time. */
const SLACK_MS = 3000

t.test('connections that ask nothing, or half of it, keep no listener open, and what was gathered is written after all', async (t) => {
  const database = await createDatabase(t)
  const env = testEnvironment(database, { PORT: '0', AUTHZ_LISTEN: '127.0.0.1:0', SHUTDOWN_TIMEOUT: '2s', USAGE_FLUSH_INTERVAL: '1h' })
  const service = start(t, ['serve'], { env })
  const [, port] = await service.line(/listening at http:\/\/[\d.]+:(\d+)/)
  const [, authzPort] = await service.line(/whoever reaches http:\/\/[\d.]+:(\d+) /)
  const token = await signOperatorToken(loadConfig(env), { org: 'acme', scopes: ['keys:issue'], subject: 'alice', ttlSeconds: 600 })
  const issued = await fetch(`http://127.0.0.1:${port}/v1/keys`, { method: 'POST', headers: { authorization: `Bearer ${token}`, 'content-type': 'application/json' }, body: '{"mecha":"sales^acmecorp"}' })
  const { plaintext_key } = (await issued.json()) as { plaintext_key: string }
  const use = async () => t.equal((await fetch(`http://127.0.0.1:${authzPort}/v1/authz`, { headers: { 'x-mecha-key': plaintext_key } })).status, 200)
  const { db } = database
  const written = async () => (await db.selectFrom('key_usage').select('last_used_at').executeTakeFirstOrThrow()).last_used_at
  await use()
  const first = await written()
  await use()
  t.same(await written(), first, 'the second use is gathered and not yet written')

  const sockets = []
  for (const listener of [port!, authzPort!])
    for (const bytes of ['', 'GET /v1/authz HTTP/1.1\r\nHost: x\r\n', 'POST /v1/keys HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{', 'GET /livez HTTP/1.1\r\nHost: x\r\n\r\nGET /livez HTTP/1.1\r\nHo'])
      sockets.push(await leaveOpen(t, Number(listener), bytes))
  const asked = performance.now()
  service.signal('SIGTERM')
  const { code, signal, stdout, stderr } = await service.ended()
  t.same([code, signal, stderr], [0, null, ''], 'an orderly end')
  t.ok(performance.now() - asked < 2000 + LAST_STEPS_MS + SLACK_MS)
  t.same(linesOf(stdout).filter(({ level }) => level >= 40), [], 'with no warning')
  await Promise.all(sockets.map(({ ended }) => ended))
  t.not((await written())?.getTime(), first?.getTime(), 'the second use was written')
  t.same((await sql`SELECT 1 FROM replicas`.execute(db)).rows, [], 'and the feed has taken its leave')
})

t.test('other signals than SIGTERM and SIGINT end nothing', async (t) => {
  const service = start(t, ['serve'], { env: testEnvironment(await createDatabase(t), { PORT: '0' }) })
  const url = (await service.line(/listening at (http:\/\/[\d.:]+)/))[1]!
  for (const signal of ['SIGUSR2', 'SIGHUP'] as const) {
    service.signal(signal)
    await service.line(new RegExp(`"signal":"${signal}","msg":"the signal changes nothing"`))
  }
  await eventually(async () => (await fetch(`${url}/readyz`)).status === 200)
  service.signal('SIGTERM')
  t.match(await service.ended(), { code: 0, signal: null })
})

t.test('Ctrl-C under npm, which passes on what the terminal has sent already, is an orderly end and no second signal', async (t) => {
  const passesOn = `const service = require('child_process').spawn(process.execPath, process.argv.slice(1), { stdio: 'inherit' })
    process.on('SIGINT', () => service.kill('SIGINT'))
    service.on('exit', (code) => process.exit(code))`
  const npm = startCommand(t, process.execPath, ['-e', passesOn, MAIN, 'serve'], { env: testEnvironment(await createDatabase(t), { PORT: '0', DRAIN_DELAY: '1' }) })
  const url = (await npm.line(/listening at (http:\/\/[\d.:]+)/))[1]!
  await eventually(async () => (await fetch(`${url}/readyz`)).status === 200)
  npm.signalGroup('SIGINT')
  const { code, stdout, stderr } = await npm.ended()
  t.same([code, stderr], [0, ''])
  t.same(linesOf(stdout).filter(({ level }) => level >= 40), [], 'with no warning')
})

/** Opens a connection, sends something and leaves it at that. Resolves, when it has arrived, to a promise of its end. */
async function leaveOpen(t: Test, port: number, bytes: string): Promise<{ ended: Promise<unknown> }> {
  const socket = connect(port, '127.0.0.1')
  t.teardown(() => socket.destroy())
  const ended = once(socket.on('error', () => {}), 'close')
  await once(socket, 'connect')
  if (bytes.includes('\r\n\r\nGET')) {
    const answered = once(socket, 'data')
    socket.write(bytes)
    await answered
  } else if (bytes) await new Promise((resolve) => socket.write(bytes, resolve))
  socket.resume()
  return { ended }
}

function linesOf(stdout: string): { level: number; msg: string }[] {
  return stdout.split('\n').filter((line) => line.startsWith('{')).map((line) => JSON.parse(line) as { level: number; msg: string })
}
