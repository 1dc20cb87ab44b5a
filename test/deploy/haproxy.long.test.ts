/** `deploy/haproxy/haproxy.cfg` in a real HAProxy, in front of three processes of the runtime plane. */

import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { settingsTable } from '../../src/config.js'
import { freePort } from '../../src/db/embedded/free-port.js'
import { PACKAGE_ROOT } from '../../src/package-root.js'
import { contractOf, operationsOf } from '../helpers/contract.js'
import { createDatabase } from '../helpers/database.js'
import { eventually } from '../helpers/eventually.js'
import { start, type Running } from '../helpers/process.js'
import { isInstalled, runProgram, temporaryFolder } from '../helpers/programs.js'
import { startService, testEnvironment } from '../helpers/service.js'
import { layWire } from '../helpers/wire.js'

const FOLDER = join(PACKAGE_ROOT, 'deploy', 'haproxy')
const CONFIGURATION = readFileSync(join(FOLDER, 'haproxy.cfg'), 'utf8')
const UNIT = readFileSync(join(FOLDER, 'mecha-keys-runtime@.service'), 'utf8')
const ADDRESSES = ['127.0.0.1:8081', '127.0.0.1:8082', '127.0.0.1:8083']
/** Shorter than the default, so that what happens after it can be waited for. */
const BOUND_S = 6

t.test('who asks through HAProxy notices nothing of a process that is killed, one that stops and a database that is away for less than the bound', { skip: !isInstalled('haproxy') && 'haproxy is not installed' }, async (t) => {
  const database = await createDatabase(t)
  const wire = await layWire(t, database.runtime)
  const control = await startService(t, { PLANES: 'control', REVOCATION_MAX_STALENESS: `${BOUND_S}s` }, database)
  const [credential, operator] = [await control.gateway(), await control.token()]
  const { DATABASE_URL: _, BUILTIN_ISSUER: __, BUILTIN_ISSUER_KEY: ___, ...runtime } = testEnvironment(database)
  const environment = {
    ...runtime, ...Object.fromEntries(settingsOfUnit()), ROOT_SECRETS: control.config.ROOT_SECRETS!.join(), REVOCATION_MAX_STALENESS: `${BOUND_S}s`,
    RUNTIME_DATABASE_URL: wire.through(database.runtime), LOG_LEVEL: 'warn',
  }
  const ports = [await freePort(), await freePort(), await freePort()]
  const replicas: Running[] = []
  const startReplica = async (index: number) => {
    replicas[index] = start(t, ['serve'], { env: { ...environment, PORT: String(ports[index]) } })
    await eventually(async () => (await get(urlOf(index), '/readyz')) === 200)
  }
  const urlOf = (index: number) => `http://127.0.0.1:${ports[index]}`
  await Promise.all([0, 1, 2].map(startReplica))
  const proxy = await startBalancer()

  const revoke = async (): Promise<{ propagation: any; key: string }> => {
    const { key, plaintext_key } = await control.issue()
    t.equal(await verify(proxy, plaintext_key), 'valid')
    const answer = await control.call('POST', `/v1/keys/${key.id}/revoke`, { token: operator, headers: { prefer: 'wait=10' } })
    return { propagation: answer.body.propagation, key: plaintext_key }
  }
  const { plaintext_key: known } = await control.issue()

  await t.test('every process is sent requests, and a revocation counts in each of them', async (t) => {
    await eventually(async () => (await verified()).every((count) => count > 0 || void verify(proxy, known)))
    const { propagation, key } = await revoke()
    t.match(propagation, { replicas: 3, confirmed: 3, complete: true })
    for (let turn = 0; turn < 6; turn++) t.equal(await verify(proxy, key), 'revoked')
    for (const index of [0, 1, 2]) t.equal(await verify(urlOf(index), key), 'revoked')
  })

  await t.test('what is nobody\'s business outside does not pass', async (t) => {
    for (const path of ['/metrics', '/docs/', '/readyz', '/openapi.json']) t.equal(await get(proxy, path), 404, path)
    t.equal(await get(proxy, '/.well-known/jwks.json'), 200)
  })

  await t.test('one that is killed', async (t) => {
    t.same(await during(async () => {
      replicas[0]!.signal('SIGKILL')
      await replicas[0]!.ended()
      const { propagation, key } = await revoke()
      t.match(propagation, { replicas: 2, confirmed: 2, complete: true }, 'it counts until its bound is over, and not for longer')
      t.equal(await verify(proxy, key), 'revoked')
      await startReplica(0)
    }), [])
  })

  await t.test('one that stops in order', async (t) => {
    t.same(await during(async () => {
      replicas[1]!.signal('SIGTERM')
      t.match(await replicas[1]!.ended(), { code: 0 })
      t.match((await revoke()).propagation, { replicas: 2, confirmed: 2, complete: true }, 'nobody waits for it')
      await startReplica(1)
    }), [])
    t.match((await revoke()).propagation, { replicas: 3, confirmed: 3, complete: true })
  })

  await t.test('a database that is away: what is known is answered for, and after the bound is refused with its reason', async (t) => {
    // Each of them knows the key.
    for (const index of [0, 1, 2]) t.equal(await verify(urlOf(index), known), 'valid')
    const cutAt = performance.now()
    t.same(await during(async () => {
      wire.cut()
      await eventually(async () => (await Promise.all([0, 1, 2].map((index) => get(urlOf(index), '/readyz')))).every((status) => status === 503))
      // As long as HAProxy takes to see that.
      await eventually(() => performance.now() - cutAt > (BOUND_S / 4) * 3 * 1000 - 1000)
    }), [])
    let last = 'valid'
    await eventually(async () => (last = await verify(proxy, known)) !== 'valid')
    t.match(last, /^503 .*"code":"(feed_stale|database_unavailable)"/, 'by the process itself')
    t.ok(performance.now() - cutAt < BOUND_S * 1000 + 1000, 'within the bound')
    wire.restore()
    await eventually(async () => (await verify(proxy, known)) === 'valid')
  })

  /** What went wrong for those who verify a key all the time, while something happens. */
  async function during(what: () => Promise<void>): Promise<string[]> {
    let isOver = false
    const answers: string[] = []
    const callers = Array.from({ length: 4 }, async () => {
      while (!isOver) answers.push(await verify(proxy, known))
    })
    await what()
    isOver = true
    await Promise.all(callers)
    if (answers.length < 100) throw new Error(`${answers.length} answers are too few to say anything`)
    return answers.filter((answer) => answer !== 'valid')
  }

  /** How many keys each process has said to be valid. */
  async function verified(): Promise<number[]> {
    const texts = await Promise.all([0, 1, 2].map(async (index) => (await fetch(`${urlOf(index)}/metrics`)).text()))
    return texts.map((text) => Number(/^mecha_keys_verifications_total\{credential="mecha",result="valid"\} (\d+)$/m.exec(text)?.[1] ?? 0))
  }

  /** HAProxy with the file as it is, but for addresses. */
  async function startBalancer(): Promise<string> {
    const folder = temporaryFolder(t)
    const [port, file] = [await freePort(), join(folder, 'haproxy.cfg')]
    const replaced = ADDRESSES.reduce((text, address, index) => text.replaceAll(address, `127.0.0.1:${ports[index]}`), CONFIGURATION)
    writeFileSync(file, replaced.replace('bind :8080', `bind 127.0.0.1:${port}`))
    await runProgram(t, 'haproxy', ['-db', '-f', file], port)
    return `http://127.0.0.1:${port}`
  }

  async function verify(url: string, key: string): Promise<string> {
    const headers = { authorization: `Bearer ${credential}`, 'content-type': 'application/json' }
    const { status, text } = await fetch(`${url}/v1/verify`, { method: 'POST', headers, body: JSON.stringify({ key }) }).then(
      async (response) => ({ status: response.status, text: await response.text() }),
      (error: Error) => ({ status: 0, text: String(error.cause) }),
    )
    if (status !== 200) return `${status} ${text}`
    const { valid, code } = JSON.parse(text) as { valid: boolean; code?: string }
    return valid ? 'valid' : code!
  }
})

t.test('the unit starts what the configuration sends requests to, with settings that there are', async (t) => {
  const names = settingsTable().map(({ name }) => name)
  t.same(settingsOfUnit().map(([name]) => name).filter((name) => !names.includes(name)), ['NODE_OPTIONS'])
  t.match(Object.fromEntries(settingsOfUnit()), { PLANES: 'runtime', HOST: '127.0.0.1', PORT: '80%i' })
  for (const backend of ['ready', 'alive']) {
    const [, section] = CONFIGURATION.split(`\nbackend ${backend}\n`)
    t.same([...section!.split('\nbackend ')[0]!.matchAll(/^ {2}server \S+ (\S+)$/gm)].map(([, address]) => address), ADDRESSES, backend)
  }
})

t.test('what is asked of another process once more is all that changes nothing, and no more', async (t) => {
  const repeated = /disable-l7-retry unless \{ path ([^}]+) \} or \{ path_beg ([^}]+) \}/.exec(CONFIGURATION)!
  const [paths, beginnings] = [repeated[1]!.split(' '), repeated[2]!.split(' ')]
  const ofRuntime = operationsOf(contractOf()).filter(({ path, operation }) => !operation['x-scope'] && /^\/(v1|\.well-known)\//.test(path)).map(({ path }) => path)
  const isRepeated = (path: string) => paths.includes(path) || beginnings.some((beginning) => path.startsWith(beginning))
  t.same([...new Set(ofRuntime.filter((path) => !isRepeated(path)))].sort(), ['/v1/nonces', '/v1/revoke-token', '/v1/token', '/v1/usage'])
  t.same(paths.filter((path) => !ofRuntime.includes(path)), [])
})

/** What the unit puts into the environment, but for its port. */
function settingsOfUnit(): [string, string][] {
  return [...UNIT.matchAll(/^Environment=(\w+)=(\S+)$/gm)].map(([, name, value]) => [name!, value!])
}

function get(url: string, path: string): Promise<number> {
  return fetch(url + path).then(async (response) => (await response.arrayBuffer(), response.status), () => 0)
}
