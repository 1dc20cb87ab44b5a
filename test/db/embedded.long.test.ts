/** The embedded default, as whoever runs it: root runs its PostgreSQL as another user. */

import { execFileSync } from 'node:child_process'
import { chmodSync, existsSync, mkdtempSync, readFileSync, rmSync, statSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import t from 'tap'
import { eventually } from '../helpers/eventually.js'
import { start, type Running } from '../helpers/process.js'

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
