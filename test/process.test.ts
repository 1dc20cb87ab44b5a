import { once } from 'node:events'
import { chmodSync, existsSync, mkdtempSync, readFileSync, rmSync, statSync } from 'node:fs'
import { execFileSync, spawn } from 'node:child_process'
import { connect } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import t, { type Test } from 'tap'
import { signOperatorToken } from '../src/auth/operators.js'
import { loadConfig } from '../src/config.js'
import { freePort } from '../src/db/free-port.js'
import { PACKAGE_ROOT } from '../src/package-root.js'
import { createDatabase } from './helpers/database.js'
import { eventually } from './helpers/eventually.js'
import { start, type Running } from './helpers/process.js'
import { testEnvironment } from './helpers/service.js'

const GONE_WITHIN_MS = 30_000

t.test('the embedded default: from the first start to the last, on one data folder', async (t) => {
  // The folder lies in one that only its owner may enter, as a home does.
  const home = mkdtempSync(join(tmpdir(), 'mecha-keys-process-'))
  chmodSync(home, 0o700)
  const dataDir = join(home, 'data')
  t.teardown(async () => {
    // Whatever is left running here ends with its service, which has been killed by now.
    for (const pid of pidsOf(dataDir)) await gone(pid).catch(() => process.kill(pid, 'SIGKILL'))
    rmSync(home, { recursive: true, force: true })
  })
  const serve = () => start(t, ['serve'], { env: { DATA_DIR: dataDir, PORT: '0' } })

  const first = serve()
  const printed = await readQuickstart(first)
  const issued = await post(`${printed.MECHA_KEYS_URL}/v1/keys`, printed.OPERATOR_TOKEN, { mecha: 'sales^acmecorp' })
  t.equal(issued.status, 201, 'the token that was printed works')
  const { key, plaintext_key } = issued.body
  const verified = async ({ MECHA_KEYS_URL, GATEWAY_CREDENTIAL }: Quickstart) => (await post(`${MECHA_KEYS_URL}/v1/verify`, GATEWAY_CREDENTIAL, { key: plaintext_key })).body
  t.match(await verified(printed), { valid: true, key_id: key.id }, 'and so does the credential')
  await eventually(async () => (await fetch(`${printed.MECHA_KEYS_URL}/readyz`)).status === 200)
  for (const name of ['root-secrets', 'builtin-issuer.pem', 'postgres.json', 'gateway-credential'])
    t.equal(statSync(join(dataDir, name)).mode & 0o777, 0o600, `${name} is its owner's alone`)

  const [keeper, postgres] = pidsOf(dataDir)
  const secrets = secretsIn(dataDir)
  t.equal(secrets.length, 6)
  for (const pid of [first.pid, keeper!, postgres!, ...childrenOf(postgres!)])
    for (const secret of secrets) t.notOk(commandOf(pid).includes(secret), 'no secret on a command line, where everybody can read it')

  const second = serve()
  t.match(await verified(printed), { valid: true }, 'the first serves on while a second one tries to start')
  const refused = await second.ended()
  t.match(refused, { code: 78, stdout: '', stderr: /^mecha-keys: [^\n]*another mecha-keys is using [^\n]*\n$/ }, 'two services do not share a folder')
  t.match(await verified(printed), { valid: true }, 'nor does it harm the first')

  first.signalGroup('SIGINT')
  t.match(await first.ended(), { code: 0, signal: null }, 'Ctrl-C, which reaches the whole group, is an orderly end')
  await Promise.all([keeper!, postgres!].map(gone))
  t.same(pidsOf(dataDir), [], 'the database was shut down and not killed')

  const third = serve()
  const again = await readQuickstart(third)
  t.equal(again.GATEWAY_CREDENTIAL, printed.GATEWAY_CREDENTIAL, 'the same credential as before')
  t.match(await verified(again), { valid: true, key_id: key.id }, 'the key is still there')
  const killed = pidsOf(dataDir)
  t.equal(killed.length, 2)
  third.signal('SIGKILL')
  await Promise.all([third.pid, ...killed].map(gone))
  t.pass('the database ends with a service that was killed')

  const fourth = serve()
  await readQuickstart(fourth)
  const [keeperToKill, orphan] = pidsOf(dataDir)
  process.kill(keeperToKill!, 'SIGKILL')
  fourth.signal('SIGKILL')
  await Promise.all([fourth.pid, keeperToKill!].map(gone))
  t.match(commandOf(orphan!), /postgres/, 'with its keeper killed as well, the database is left behind')

  const fifth = serve()
  const last = await readQuickstart(fifth)
  await gone(orphan!)
  t.not(pidsOf(dataDir)[1], orphan, 'the next start ends it and starts its own')
  t.match(await verified(last), { valid: true, key_id: key.id }, 'and nothing is lost')
  fifth.signal('SIGTERM')
  t.match(await fifth.ended(), { code: 0, signal: null })
})

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
  socket.write('GET /livez HTTP/1.1\r\nHost: x\r\n\r\n' +
    `POST /v1/keys HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer ${token}\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: ${body.length}\r\n\r\n${body.slice(0, 10)}`)
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

interface Quickstart {
  readonly MECHA_KEYS_URL: string
  readonly OPERATOR_TOKEN: string
  readonly GATEWAY_CREDENTIAL: string
}

async function readQuickstart(service: Running): Promise<Quickstart> {
  const value = async (name: string) => (await service.line(new RegExp(`^export ${name}=(\\S+)$`, 'm')))[1]!
  return { MECHA_KEYS_URL: await value('MECHA_KEYS_URL'), OPERATOR_TOKEN: await value('OPERATOR_TOKEN'), GATEWAY_CREDENTIAL: await value('GATEWAY_CREDENTIAL') }
}

async function post(url: string, token: string, body: object): Promise<{ status: number; body: any }> {
  const response = await fetch(url, { method: 'POST', headers: { authorization: `Bearer ${token}`, 'content-type': 'application/json' }, body: JSON.stringify(body) })
  return { status: response.status, body: await response.json() }
}

/** The process ids of the keeper and of the database, of those that there are. */
function pidsOf(dataDir: string): number[] {
  return [join('postgres', 'keeper.pid'), join('postgres', 'data', 'postmaster.pid')]
    .map((name) => join(dataDir, name))
    .filter((file) => existsSync(file))
    .map((file) => Number(readFileSync(file, 'utf8').split('\n')[0]))
}

function secretsIn(dataDir: string): string[] {
  const read = (name: string) => readFileSync(join(dataDir, name), 'utf8').trim()
  return [read('root-secrets'), read('gateway-credential'), read('builtin-issuer.pem').split('\n')[1]!, ...Object.values(JSON.parse(read('postgres.json')) as Record<string, string>)]
}

/** A process's command line: empty when it has ended, also while nobody has collected it. */
function commandOf(pid: number): string {
  if (existsSync('/proc/self/cmdline')) return existsSync(`/proc/${pid}/cmdline`) ? readFileSync(`/proc/${pid}/cmdline`, 'utf8') : ''
  try {
    return execFileSync('ps', ['-o', 'command=', '-p', String(pid)], { encoding: 'utf8' })
  } catch {
    return ''
  }
}

function childrenOf(pid: number): number[] {
  try {
    return execFileSync('ps', ['-A', '-o', 'pid=,ppid='], { encoding: 'utf8' })
      .split('\n')
      .map((line) => line.trim().split(/\s+/).map(Number))
      .filter(([, parent]) => parent === pid)
      .map(([child]) => child!)
  } catch {
    return []
  }
}

async function gone(pid: number): Promise<void> {
  const deadline = Date.now() + GONE_WITHIN_MS
  while (commandOf(pid) !== '') {
    if (Date.now() > deadline) throw new Error(`process ${pid} is still there: ${commandOf(pid)}`)
    await sleep(20)
  }
}

t.test('a service whose log nobody reads answers all the same, and ends when it is told to', async (t) => {
  const port = await freePort()
  const child = spawn(process.execPath, [join(PACKAGE_ROOT, 'dist', 'src', 'main.js'), 'serve'], {
    env: { PATH: process.env['PATH'], ...testEnvironment(await createDatabase(t)), PORT: String(port), LOG_LEVEL: 'info' },
    stdio: ['ignore', 'pipe', 'inherit'],
  })
  t.teardown(() => child.kill('SIGKILL'))
  const ask = () => fetch(`http://127.0.0.1:${port}/livez`).then(({ ok }) => ok, () => false)
  await eventually(ask)
  // More than a pipe holds, some times over: a request's line has more than a hundred bytes.
  let answered = 0
  while (answered < 5000 && (await ask())) answered++
  t.equal(answered, 5000)
  const exited = once(child, 'exit', { signal: AbortSignal.timeout(GONE_WITHIN_MS) })
  child.kill('SIGTERM')
  t.same(await exited, [0, null])
})
