/** Behind a real PgBouncer in transaction mode, with the change feed on a connection straight to PostgreSQL. */

import { execFileSync, spawn, type ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import { chmodSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { connect } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { sql } from 'kysely'
import t, { type Test } from 'tap'
import { freePort } from '../../src/db/embedded/free-port.js'
import { ensureLogin } from '../../src/db/logins.js'
import { createDatabase, type TestDatabase } from '../helpers/database.js'
import { eventually } from '../helpers/eventually.js'
import { fresh, startService } from '../helpers/service.js'

const SERVER_CONNECTIONS = 2
/** As deployed: who waits for his turn behind a small pooler waits for as long as the setting allows. */
const TIMEOUT_MS = 5000
const SHORT_TIMEOUT_MS = 1000

t.test('everything works through PgBouncer, and known keys without it', { skip: !isInstalled() && 'pgbouncer is not installed' }, async (t) => {
  const database = await createDatabase(t)
  for (const plane of ['control', 'runtime'] as const) await ensureLogin(database.db, plane, database[plane], TIMEOUT_MS)
  const pooler = await preparePooler(t, database)
  await pooler.start()
  const pooled = { ...database, control: pooler.through(database.control), runtime: pooler.through(database.runtime) }
  const service = await startService(t, { DATABASE_DIRECT_URL: database.runtime, MAX_ACTIVE_KEYS_PER_MECHA: '100' }, pooled)
  await fresh(service)
  const gateway = await service.gateway()
  const token = await service.token()

  await t.test('more at once than there are connections behind it', async (t) => {
    const issued = await Promise.all(Array.from({ length: 30 }, (_, i) => service.issue({ mecha: `m${i % 3}^acmecorp` })))
    const verdicts = await Promise.all(issued.map(({ plaintext_key }) => service.verify(plaintext_key, {}, gateway)))
    t.equal(verdicts.filter(({ valid }) => valid).length, issued.length)
    t.ok((await sessions(database)) <= 2 * SERVER_CONNECTIONS, 'of each login, no more than it is allowed')
  })

  await t.test('a revocation comes by the feed, and its receipt says so', async (t) => {
    const { key, plaintext_key } = await service.issue()
    t.match(await service.verify(plaintext_key, {}, gateway), { valid: true })
    const revoked = await service.call('POST', `/v1/keys/${key.id}/revoke`, { token, headers: { prefer: 'wait=10' } })
    t.match(revoked.body.propagation, { replicas: 1, confirmed: 1 })
    t.match(await service.verify(plaintext_key, {}, gateway), { valid: false, code: 'revoked' })
  })

  await t.test('a statement that takes too long is ended by the server itself', async (t) => {
    const { key } = await service.issue({ mecha: 'held^acmecorp' })
    // What is set for the login counts, and not what the service asks for when it connects: the pooler ignores that.
    await ensureLogin(database.db, 'control', database.control, SHORT_TIMEOUT_MS)
    await pooler.kill()
    await pooler.start()
    await eventually(async () => (await service.call('GET', `/v1/keys/${key.id}`, { token })).status === 200)
    await database.db.transaction().execute(async (trx) => {
      await sql`SELECT FROM mechas WHERE handle = 'held^acmecorp' FOR UPDATE`.execute(trx)
      const answer = await service.call('POST', '/v1/keys', { token, body: { mecha: 'held^acmecorp' } })
      t.match(answer, { status: 503, body: { code: 'overloaded' } })
      await eventually(async () => (await waiting(database)) === 0)
    })
    t.match(await service.call('POST', `/v1/keys/${key.id}/rotate`, { token, body: {} }), { status: 201 })
  })

  await t.test('without it, known keys are verified, others get 503, and all is well when it is back', async (t) => {
    const [known, other] = [await service.issue(), await service.issue()]
    t.match(await service.verify(known.plaintext_key, {}, gateway), { valid: true })
    await pooler.kill()
    t.match(await service.verify(known.plaintext_key, {}, gateway), { valid: true })
    t.match(await service.call('POST', '/v1/verify', { token: gateway, body: { key: other.plaintext_key } }), { status: 503 })
    await sql`UPDATE keys SET revoked_at = now(), revoked_by = 'test' WHERE mecha = 'm0^acmecorp'`.execute(database.db)
    await pooler.start()
    await eventually(async () => (await service.call('POST', '/v1/verify', { token: gateway, body: { key: other.plaintext_key } })).body.valid === true)
    await fresh(service)
    t.match(await service.call('GET', '/readyz'), { status: 200 })
  })
})

interface Pooler {
  through(url: string): string
  start(): Promise<void>
  kill(): Promise<void>
}

async function preparePooler(t: Test, database: TestDatabase): Promise<Pooler> {
  const folder = mkdtempSync(join(tmpdir(), 'mecha-keys-pgbouncer-'))
  const { hostname, port: serverPort, pathname } = new URL(database.owner)
  const port = await freePort()
  const users = [database.control, database.runtime].map((url) => new URL(url)).map(({ username, password }) => `"${username}" "${password}"\n`)
  writeFileSync(join(folder, 'users.txt'), users.join(''))
  // As docs/deployment.md has it, but for the names of this machine.
  writeFileSync(join(folder, 'pgbouncer.ini'), `
[databases]
${pathname.slice(1)} = host=${hostname} port=${serverPort}

[pgbouncer]
listen_addr = 127.0.0.1
listen_port = ${port}
unix_socket_dir =
auth_type = scram-sha-256
auth_file = ${join(folder, 'users.txt')}
pool_mode = transaction
default_pool_size = ${SERVER_CONNECTIONS}
max_client_conn = 1000
ignore_startup_parameters = statement_timeout,lock_timeout,idle_in_transaction_session_timeout
server_login_retry = 1
`)
  // PgBouncer does not run as root, and whoever it runs as has to read this.
  chmodSync(folder, 0o755)
  let child: ChildProcess | undefined
  const kill = async () => {
    if (!child || child.exitCode !== null || child.signalCode !== null) return
    const exited = once(child, 'exit')
    child.kill('SIGKILL')
    await exited
  }
  t.teardown(async () => {
    await kill()
    rmSync(folder, { recursive: true, force: true })
  })
  return {
    through: (url) => Object.assign(new URL(url), { host: `127.0.0.1:${port}` }).href,
    async start() {
      const asUser = process.getuid?.() === 0 ? ['-u', 'nobody'] : []
      child = spawn('pgbouncer', ['-q', ...asUser, join(folder, 'pgbouncer.ini')], { stdio: 'ignore', env: { PATH: `${process.env['PATH']}:/usr/sbin` } })
      await eventually(() => accepts(port))
    },
    kill,
  }
}

function isInstalled(): boolean {
  try {
    execFileSync('pgbouncer', ['--version'], { stdio: 'ignore', env: { PATH: `${process.env['PATH']}:/usr/sbin` } })
    return true
  } catch {
    return false
  }
}

/** Connections of the planes' pools, as PostgreSQL counts them: the feed's own is not among them. */
async function sessions({ db }: TestDatabase): Promise<number> {
  const { rows } = await sql<{ count: number }>`
    SELECT count(*)::int AS count FROM pg_stat_activity
    WHERE datname = current_database() AND usename LIKE 'mecha_keys_test_%' AND application_name IN ('mecha-keys control', 'mecha-keys runtime')`.execute(db)
  return rows[0]!.count
}

async function waiting({ db }: TestDatabase): Promise<number> {
  const { rows } = await sql<{ count: number }>`SELECT count(*)::int AS count FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'`.execute(db)
  return rows[0]!.count
}

function accepts(port: number): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = connect(port, '127.0.0.1')
    socket.once('connect', () => (socket.destroy(), resolve(true))).once('error', () => resolve(false))
  })
}
