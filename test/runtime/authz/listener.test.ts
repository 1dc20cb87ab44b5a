/** The listener of `AUTHZ_LISTEN`, in a process of its own: how it begins and how it ends. */

import { once } from 'node:events'
import { existsSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { request, type IncomingMessage, type RequestOptions } from 'node:http'
import { connect, createServer, type AddressInfo, type Socket } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { text } from 'node:stream/consumers'
import t, { type Test } from 'tap'
import { signOperatorToken } from '../../../src/control/operators/builtin-issuer.js'
import { loadConfig } from '../../../src/config.js'
import { createDatabase } from '../../helpers/database.js'
import { eventually } from '../../helpers/eventually.js'
import { start, startCommand, type Running } from '../../helpers/process.js'
import { testEnvironment } from '../../helpers/service.js'
import { layWire } from '../../helpers/wire.js'

t.test('it listens beside the main one, says to whom in the log, and ends with it', async (t) => {
  const { service, url, issue } = await deployed(t, { AUTHZ_LISTEN: '127.0.0.1:0' })
  const [, door, whose] = await service.line(/whoever reaches http:\/\/([\d.:]+) may ask \/v1\/authz about ([^,]+), without a credential/)
  t.equal(whose, 'the keys of every organization')
  const [host, port] = door!.split(':')
  const key = await issue()
  t.match(await ask({ host, port }, key), { status: 200, org: 'acme' })
  t.equal((await ask({ host, port }, key, '/livez')).status, 404)
  t.equal((await fetch(`${url}/livez`)).status, 200)
  service.signal('SIGTERM')
  t.match(await service.ended(), { code: 0, signal: null })
  await t.rejects(ask({ host, port }, key))
})

t.test('a request that waits when it is told to end still gets its answer', async (t) => {
  const database = await createDatabase(t)
  const wire = await layWire(t, database.runtime)
  const { service, issue } = await deployed(t, { AUTHZ_LISTEN: '127.0.0.1:0', RUNTIME_DATABASE_URL: wire.through(database.runtime), DATABASE_DIRECT_URL: database.runtime, DATABASE_TIMEOUT: '30s' }, database)
  const [, host, port] = await service.line(/whoever reaches http:\/\/([\d.]+):(\d+) /)
  const key = await issue()
  const isHeld = wire.hold()
  const answer = ask({ host, port }, key)
  await isHeld
  service.signal('SIGTERM')
  await service.line(/"msg":"draining"/)
  await refusesConnections(Number(port))
  wire.release()
  t.match(await answer, { status: 200, org: 'acme' })
  t.match(await service.ended(), { code: 0, signal: null })
})

t.test('an address that is taken ends the start as a taken port does', async (t) => {
  const taken = createServer().listen(0, '127.0.0.1')
  await once(taken, 'listening')
  t.teardown(() => taken.close())
  const env = { ...testEnvironment(await createDatabase(t)), PORT: '0', AUTHZ_LISTEN: `127.0.0.1:${(taken.address() as AddressInfo).port}` }
  t.match(await start(t, ['serve'], { env }).ended(), { code: 78, stderr: 'mecha-keys: AUTHZ_LISTEN cannot be listened on (EADDRINUSE)\n' })
})

t.test('it may be a socket in a folder, also where a process that was killed left one', async (t) => {
  const folder = mkdtempSync(join(tmpdir(), 'mecha-keys-socket-'))
  t.teardown(() => rmSync(folder, { recursive: true, force: true }))
  const socketPath = join(folder, 'authz.sock')
  const settings = { AUTHZ_LISTEN: `unix:${socketPath}`, AUTHZ_ORG: 'acme' }
  const first = await deployed(t, settings)
  t.equal((await first.service.line(/may ask \/v1\/authz about ([^,]+),/))[1], 'the keys of acme')
  t.match(await ask({ socketPath }, await first.issue()), { status: 200, org: 'acme' })
  const second = start(t, ['serve'], { env: { ...testEnvironment(await createDatabase(t)), PORT: '0', ...settings } })
  t.match(await second.ended(), { code: 78, stderr: 'mecha-keys: AUTHZ_LISTEN cannot be listened on (EADDRINUSE)\n' }, 'one that is listened on is left alone')
  first.service.signal('SIGKILL')
  await first.service.ended()
  t.ok(existsSync(socketPath))
  const third = await deployed(t, settings)
  await third.service.line(/may ask \/v1\/authz/)
  t.match(await ask({ socketPath }, await third.issue()), { status: 200 })
  third.service.signal('SIGTERM')
  t.match(await third.service.ended(), { code: 0 })
  t.notOk(existsSync(socketPath), 'an orderly end leaves none')
  writeFileSync(socketPath, 'precious')
  const fourth = start(t, ['serve'], { env: { ...testEnvironment(await createDatabase(t)), PORT: '0', ...settings } })
  t.match(await fourth.ended(), { code: 78 })
  t.ok(existsSync(socketPath), 'a file that is no socket is not removed')
})

t.test('a socket is taken over only when nobody listens on it, and not when who does cannot keep up', async (t) => {
  const folder = mkdtempSync(join(tmpdir(), 'mecha-keys-socket-'))
  t.teardown(() => rmSync(folder, { recursive: true, force: true }))
  const socketPath = join(folder, 'authz.sock')
  const busy = startCommand(t, process.execPath, ['-e', `require('net').createServer().listen({ path: '${socketPath}', backlog: 1 }, () => console.log('listening'))`])
  await busy.line(/listening/)
  busy.signal('SIGSTOP')
  // It accepts nothing any more: what fills its queue waits, and the next one is told to come again.
  const waiting: Socket[] = []
  t.teardown(() => waiting.forEach((socket) => socket.destroy()))
  for (let code: string | undefined; code !== 'EAGAIN'; ) {
    const socket = connect(socketPath)
    waiting.push(socket)
    code = await once(socket, 'connect').then(() => undefined, (error: NodeJS.ErrnoException) => error.code)
  }
  const service = start(t, ['serve'], { env: { ...testEnvironment(await createDatabase(t)), PORT: '0', AUTHZ_LISTEN: `unix:${socketPath}` } })
  t.match(await service.ended(), { code: 78, stderr: 'mecha-keys: AUTHZ_LISTEN cannot be listened on (EADDRINUSE)\n' })
  t.ok(existsSync(socketPath))
})

/** A service on a database of the test's server, as it is deployed. */
async function deployed(t: Test, environment: Record<string, string>, given?: Awaited<ReturnType<typeof createDatabase>>) {
  const env = testEnvironment(given ?? (await createDatabase(t)), environment)
  const service: Running = start(t, ['serve'], { env: { ...env, PORT: '0' } })
  const url = (await service.line(/listening at (http:\/\/[\d.:]+)/))[1]!
  const token = await signOperatorToken(loadConfig(env), { org: 'acme', scopes: ['keys:issue'], subject: 'alice', ttlSeconds: 600 })
  return {
    service, url,
    issue: async (): Promise<string> => {
      const answer = await fetch(`${url}/v1/keys`, { method: 'POST', headers: { authorization: `Bearer ${token}`, 'content-type': 'application/json' }, body: '{"mecha":"sales^acmecorp"}' })
      return ((await answer.json()) as { plaintext_key: string }).plaintext_key
    },
  }
}

async function ask(where: RequestOptions, key: string, path = '/v1/authz/some/path'): Promise<{ status: number; org: unknown }> {
  const sent = request({ ...where, path, agent: false, headers: { 'X-Mecha-Key': key } }).end()
  const [response] = (await once(sent, 'response')) as [IncomingMessage]
  await text(response)
  return { status: response.statusCode!, org: response.headers['x-mecha-org'] }
}

function refusesConnections(port: number): Promise<void> {
  return eventually(async () => {
    const socket = connect(port, '127.0.0.1')
    const isRefused = await once(socket, 'connect').then(() => false, () => true)
    socket.destroy()
    return isRefused
  })
}
