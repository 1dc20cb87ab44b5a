/** The documented back-up and restore, by the documented commands, while replicas and a gateway are asked all the time; and what such tests share. */

import { execFileSync } from 'node:child_process'
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, symlinkSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import type { Test } from 'tap'
import { openDatabase } from '../../../src/db/pool.js'
import { createVerifier, type Verifier } from '../../../src/gateway-sdk/index.js'
import { PACKAGE_ROOT } from '../../../src/package-root.js'
import { eventually } from '../../helpers/eventually.js'
import { outcome } from '../../helpers/gateway.js'
import { createCluster, createServiceDatabase, postgresPrograms } from '../../helpers/postgres.js'
import { start } from '../../helpers/process.js'
import { found, processSecrets } from '../../helpers/secrets.js'
import { fresh, startService, type Service } from '../../helpers/service.js'
import { openShell, type Shell } from '../../helpers/shell.js'
import { layWire } from '../../helpers/wire.js'

const DEPLOYMENT = readFileSync(join(PACKAGE_ROOT, 'docs', 'deployment.md'), 'utf8')
export const programs = postgresPrograms()
export const skip = programs === undefined && "no PostgreSQL with its programs is installed (Debian's package postgresql)"
const BATCH = 100

/**
 * Back-up, revocations, restore and replay, in place and into a new cluster: what was revoked is accepted at no moment.
 *
 * @param howMany keys are revoked by the kill switch since the back-up
 */
export async function backUpAndRestore(t: Test, howMany: number): Promise<void> {
  const cluster = await createCluster(t, programs!)
  const urls = await createServiceDatabase(cluster)
  const terminal = await openTerminal(t, urls)
  await terminal.succeed(t, 'mecha-keys migrate --with-logins')
  const wire = await layWire(t, urls.MIGRATE_DATABASE_URL)
  const settings = { MAX_ACTIVE_KEYS_PER_MECHA: '5000', REVOCATION_MAX_STALENESS: '3s', ROOT_SECRETS: 'r'.repeat(43), KEY_DEFAULT_TTL: '30d' }
  const db = openDatabase({ url: urls.MIGRATE_DATABASE_URL, size: 1, timeoutMs: 30_000, name: 'test' })
  t.teardown(() => db.destroy())
  const database = { owner: urls.MIGRATE_DATABASE_URL, control: wire.through(urls.DATABASE_URL), runtime: wire.through(urls.RUNTIME_DATABASE_URL), db }
  const replicas = [await startService(t, settings, database), await startService(t, settings, database)]
  const [service] = replicas as [Service]
  await Promise.all(replicas.map(fresh))
  const token = await service.token()
  const call = async (method: 'POST' | 'PATCH', url: string, body: object = {}) => {
    const answer = await service.call(method, url, { token, body })
    t.ok(answer.status < 300, `${url}: ${answer.text}`)
    return answer.body
  }

  // What is there when the back-up is made.
  const credential = await service.gateway()
  const verifier = createVerifier({ url: await service.app.listen({ port: 0 }), credential, maxStalenessMs: 3000 })
  t.teardown(() => verifier.close())
  const doomed = await many(howMany, () => service.issue())
  const kept = await many(10, () => service.issue({ mecha: 'kept^acmecorp' }))
  const named = async (mecha: string) => service.issue({ mecha: `${mecha}^acmecorp` })
  const [disabled, shortened, rotated, leaked] = [await named('disabled'), await named('shortened'), await named('rotated'), await named('leaked')]
  const repeat = { token, body: { mecha: 'replaced^acmecorp' }, headers: { 'idempotency-key': 'one' } }
  const replaced = (await service.call('POST', '/v1/keys', repeat)).body
  const lostGateway = (await call('POST', '/v1/gateways', { name: 'lost' })) as { gateway: { id: string }; plaintext_key: string }
  const ended = [...doomed, disabled, shortened, rotated, leaked].map(({ plaintext_key }) => plaintext_key)
  for (const replica of replicas) t.equal(await accepted(replica, credential, ended), ended.length)
  for (const key of ended) await verifier.verify(key)
  // Events in several partitions are backed up and restored as those in one.
  await terminal.succeed(t, 'mecha-keys events expire')
  await terminal.succeed(t, ...commandsUnder('## Back-up', 'pg_dump'))
  const dump = execFileSync(join(programs!, 'pg_dump'), [urls.MIGRATE_DATABASE_URL], { encoding: 'latin1', maxBuffer: Infinity })
  t.equal(dump.split('$argon2id$').length - 1, ended.length + 13, 'the back-up has the keys')
  const plaintexts = Object.fromEntries([...ended.slice(-20), credential].map((key, i) => [`secret ${i} of a key`, Buffer.from(key.slice(-60, -17))]))
  t.same(found({ ...processSecrets(service.config), ...plaintexts }, { 'the back-up': dump }), [], 'and nothing that verifies or makes one')

  // What happens since.
  const following = start(t, commandsUnder('## Back-up', 'events')[0]!.split(' ').slice(1, -1).concat(terminal.file), { env: urls })
  await call('POST', '/v1/mechas/sales%5Eacmecorp/revoke-keys', { reason: 'leaked' })
  await call('PATCH', `/v1/keys/${disabled.key.id}`, { enabled: false })
  await call('PATCH', `/v1/keys/${shortened.key.id}`, { expires_at: new Date(Date.now() + 1000).toISOString() })
  await call('POST', `/v1/keys/${rotated.key.id}/rotate`, { overlap_seconds: 0 })
  await service.call('POST', '/v1/revoke-token', { headers: { 'content-type': 'application/x-www-form-urlencoded' }, body: `token=${leaked.plaintext_key}` })
  await service.call('POST', '/v1/keys', repeat)
  await call('POST', `/v1/gateways/${lostGateway.gateway.id}/revoke`)
  const [since] = await many(1, () => service.issue({ mecha: 'since^acmecorp' }))
  const dead = [...ended, replaced.plaintext_key as string]
  await eventually(async () => (await accepted(service, credential, dead)) === 0 && (await accepted(replicas[1]!, credential, dead)) === 0)
  await eventually(() => existsSync(terminal.file) && readFileSync(terminal.file, 'utf8').includes(since!.key.id))

  await t.test('in place, while they are asked', async (t) => {
    const asking = askAllTheTime(replicas, verifier, credential, dead)
    const [restore, migrate, replay, ...more] = commandsUnder('## Restore', '--clean')
    t.same(more, [])
    await terminal.succeed(t, restore!)
    await held(t, replicas)
    t.match(await service.call('POST', '/v1/verify', { token: credential, body: { key: kept[0]!.plaintext_key } }), { status: 503, body: { code: 'database_restored' } })
    t.equal(await outcome(verifier, kept[0]!.plaintext_key), 'service_unavailable')
    t.match((await call('POST', `/v1/keys/${kept[9]!.key.id}/revoke`)).propagation, { confirmed: 0 }, 'nobody can say that it counts everywhere')
    t.match(await following.ended(), { code: 78, stderr: /it was restored/ })
    await terminal.succeed(t, migrate!)
    await asking.goesOn()
    await held(t, replicas)
    t.match(await terminal.succeed(t, replay!), new RegExp(`${howMany + 3} revoked, 2 disabled, 2 with an earlier end.*${since!.key.id}`, 's'))
    await recovered(replicas)
    await asking.goesOn()
    t.equal(await asking.ended(), 0, 'accepted')
    await afterwards(t)
  })

  await t.test('into a new cluster, to which the replicas are led', async (t) => {
    const other = await createCluster(t, programs!)
    const otherUrls = await createServiceDatabase(other)
    const elsewhere = await openTerminal(t, otherUrls, terminal.folder)
    const asking = askAllTheTime(replicas, verifier, credential, dead)
    const [roles, restore, migrate, replay, ...more] = commandsUnder('## Restore', 'CREATE ROLE')
    t.same(more, [])
    await elsewhere.succeed(t, roles!, restore!)
    wire.cut()
    wire.leadTo(otherUrls.MIGRATE_DATABASE_URL)
    wire.restore()
    await elsewhere.succeed(t, migrate!)
    await held(t, replicas)
    await asking.goesOn()
    await elsewhere.succeed(t, replay!)
    t.match(await elsewhere.succeed(t, replay!), / 0 revoked, 0 disabled, 0 with an earlier end/, 'once more changes nothing')
    await recovered(replicas)
    await asking.goesOn()
    t.equal(await asking.ended(), 0, 'accepted')
    await afterwards(t)
    // Before the cluster ends.
    wire.cut()
  })

  async function afterwards(t: Test): Promise<void> {
    const codes = async (key: string) => (await service.call('POST', '/v1/verify', { token: credential, body: { key } })).body
    t.match(await codes(doomed[0]!.plaintext_key), { valid: false, code: 'revoked' })
    t.match(await codes(disabled.plaintext_key), { valid: false, code: 'disabled' })
    t.match(await codes(shortened.plaintext_key), { valid: false, code: 'expired' })
    t.match(await codes(rotated.plaintext_key), { valid: false, code: /^(expired|disabled)$/ })
    t.match(await codes(leaked.plaintext_key), { valid: false, code: 'revoked' })
    t.match(await codes(replaced.plaintext_key), { valid: false, code: 'revoked' })
    t.match(await codes(since!.plaintext_key), { valid: false, code: 'unknown' })
    t.match(await codes(kept[0]!.plaintext_key), { valid: true })
    t.match(await service.call('POST', '/v1/verify', { token: lostGateway.plaintext_key, body: { key: '' } }), { status: 401 })
    const { body } = await service.call('GET', `/v1/keys/${doomed[0]!.key.id}`, { token })
    t.match(body, { status: 'revoked', revoked_by: 'builtin:alice', revoke_reason: 'leaked' }, 'as it had been revoked')
    const events = await service.call('GET', `/v1/events?key_id=${doomed[0]!.key.id}`, { token })
    t.match(events.body.events.at(-1), { type: 'key.revoked', actor: 'restore' })
  }
}

export interface Terminal extends Shell {
  readonly folder: string
  /** `events.jsonl` in it. */
  readonly file: string
  /** Runs some lines, expects that they succeed, and gives what they wrote. */
  succeed(t: Test, ...lines: string[]): Promise<string>
}

/** A shell in a folder of its own, or in another's, with the programs and the settings of a database. */
export async function openTerminal(t: Test, urls: Record<string, string>, shared?: string): Promise<Terminal> {
  const folder = shared ?? mkdtempSync(join(tmpdir(), 'mecha-keys-restore-'))
  if (!shared) {
    t.teardown(() => rmSync(folder, { recursive: true, force: true }))
    mkdirSync(join(folder, 'bin'))
    symlinkSync(join(PACKAGE_ROOT, 'dist', 'src', 'main.js'), join(folder, 'bin', 'mecha-keys'))
  }
  const shell = openShell(t)
  for (const [name, value] of Object.entries(urls)) await shell.run(`export ${name}='${value}'`)
  await shell.run(`cd ${folder}; export PATH=${join(folder, 'bin')}:${programs}:$PATH`)
  return {
    folder,
    file: join(folder, 'events.jsonl'),
    run: (line) => shell.run(line),
    async succeed(t, ...lines) {
      let written = ''
      for (const line of lines) {
        let { output, code } = await shell.run(line)
        // As the page says: nothing was restored, run it again.
        for (let again = 0; again < 5 && code !== 0 && /deadlock detected/.test(output); again++) ({ output, code } = await shell.run(line))
        t.equal(code, 0, `${line}\n${output}`)
        written += output
      }
      return written
    },
  }
}

/** The lines of the first block under a heading that has a word in it. */
export function commandsUnder(heading: string, word: string): string[] {
  const section = DEPLOYMENT.slice(DEPLOYMENT.indexOf(`\n${heading}\n`) + 1).split(/\n## /)[0]!
  const block = [...section.matchAll(/```bash\n(.*?)```/gs)].find(([, lines]) => lines!.includes(word))
  if (!block) throw new Error(`no command with ${word} under ${heading}`)
  return block[1]!.trim().split('\n')
}

async function many<T>(count: number, make: () => Promise<T>): Promise<T[]> {
  const made: T[] = []
  while (made.length < count) made.push(...(await Promise.all(Array.from({ length: Math.min(20, count - made.length) }, make))))
  return made
}

/** How many of some keys a replica accepts at this moment. */
async function accepted(service: Service, credential: string, keys: readonly string[]): Promise<number> {
  let count = 0
  for (let i = 0; i < keys.length; i += BATCH) {
    const answer = await service.call('POST', '/v1/verify/batch', { token: credential, body: { keys: keys.slice(i, i + BATCH).map((key) => ({ key })) } })
    if (answer.status === 200) count += answer.body.results.filter(({ valid }: { valid: boolean }) => valid).length
  }
  return count
}

/** Asks every replica, and the gateway, for every key, again and again. */
function askAllTheTime(replicas: readonly Service[], verifier: Verifier, credential: string, keys: readonly string[]) {
  let [isAsking, count, rounds] = [true, 0, 0]
  const lanes = [
    ...replicas.map((replica) => async () => void (count += await accepted(replica, credential, keys))),
    async () => {
      for (const key of keys) if ((await outcome(verifier, key)) === 'valid') count++
    },
  ].map(async (ask) => {
    while (isAsking) {
      await ask()
      rounds++
      // What is waited for needs the core as well.
      await sleep(5)
    }
  })
  return {
    /** Resolves when everybody has been asked several times more. */
    async goesOn(): Promise<void> {
      const until = rounds + 10
      await eventually(() => rounds >= until)
    },
    /** How often one was accepted. */
    async ended(): Promise<number> {
      isAsking = false
      await Promise.all(lanes)
      return count
    },
  }
}

export async function held(t: Test, replicas: readonly Service[]): Promise<void> {
  for (const replica of replicas) {
    await eventually(async () => /restore replay/.test((await replica.call('GET', '/readyz')).text))
    const answer = await replica.call('GET', '/readyz')
    t.match(answer, { status: 503, body: { checks: { database_control: /mecha-keys restore replay FILE, or mecha-keys restore waive/, database_runtime: /mecha-keys restore replay FILE/ } } })
  }
}

export async function recovered(replicas: readonly Service[]): Promise<void> {
  await eventually(async () => (await Promise.all(replicas.map((replica) => replica.call('GET', '/readyz')))).every(({ status }) => status === 200))
  await Promise.all(replicas.map(fresh))
}
