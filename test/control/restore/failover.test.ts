/** A failover is told from a restore by the replicas that ran through it: a primary and its standby, and a promotion. */

import { sql, type Kysely } from 'kysely'
import { Client } from 'pg'
import t, { type Test } from 'tap'
import { ensureLogin } from '../../../src/db/logins.js'
import { migrate } from '../../../src/db/migrate.js'
import { openDatabase } from '../../../src/db/pool.js'
import type { Database } from '../../../src/db/tables.js'
import { eventually } from '../../helpers/eventually.js'
import { createCluster, createServiceDatabase, postgresPrograms, type Cluster } from '../../helpers/postgres.js'
import { fresh, startService, type Service } from '../../helpers/service.js'
import { layWire, type Wire } from '../../helpers/wire.js'

const programs = postgresPrograms()
const skip = programs === undefined && "no PostgreSQL with its programs is installed (Debian's package postgresql)"

t.test('a failover that lost nothing is gone through; who has just started waits for somebody who knows', { skip }, async (t) => {
  const { primary, standby, wire, replica, owner } = await replicated(t)
  const service = await replica()
  const gateway = await service.gateway()
  const kept = await service.issue()
  const revoked = await service.issue()
  t.match(await service.verify(kept.plaintext_key), { valid: true })
  t.match(await service.verify(revoked.plaintext_key), { valid: true })
  await revoke(t, service, revoked.key.id)
  await caughtUp(primary, standby)
  wire.cut()
  await primary.stop('immediate')
  await standby.promote()

  const direct = await layWire(t, standby.url('x', 'x'))
  const newcomer = await replica(direct)
  await held(newcomer, /another server took over/)
  t.match((await newcomer.call('POST', '/v1/verify', { token: gateway, body: { key: kept.plaintext_key } })).body, { code: 'database_restored' })
  wire.leadTo(standby.url('x', 'x'))
  wire.restore()
  await ready(service)
  await ready(newcomer)
  t.match(await service.verify(kept.plaintext_key), { valid: true })
  t.match(await service.verify(revoked.plaintext_key), { valid: false, code: 'revoked' })
  const db = owner(standby)
  t.match(await db.selectFrom('database_identity' as never).select(['accepted_by', 'timeline'] as never).execute(), [{ accepted_by: /^replica /, timeline: '00000002' }])
  await db.destroy()
})

t.test('a failover that lost a revocation which a replica knew is held, and the key is accepted by nobody', { skip }, async (t) => {
  const { primary, standby, wire, replica, owner } = await replicated(t)
  const service = await replica()
  const gateway = await service.gateway()
  const { key, plaintext_key } = await service.issue()
  t.match(await service.verify(plaintext_key), { valid: true })
  await caughtUp(primary, standby)
  // From here on the standby is not told.
  await standby.stop('fast')
  await revoke(t, service, key.id)
  wire.cut()
  await primary.stop('immediate')
  await standby.start()
  await standby.promote()
  const db = owner(standby)
  t.match(await db.selectFrom('keys').select('revoked_at').where('kind', '=', 'mecha').execute(), [{ revoked_at: null }], 'it is lost')
  wire.leadTo(standby.url('x', 'x'))
  wire.restore()
  await held(service, /changes that a replica had known are gone/)
  t.match((await service.call('POST', '/v1/verify', { token: gateway, body: { key: plaintext_key } })).body, { code: 'database_restored' })
  // A newcomer knows no better, and is told.
  await held(await replica(), /changes that a replica had known are gone/)
  await db.destroy()
})

t.test('a crash, a lost connection and a rewrite of the tables are no restore', { skip }, async (t) => {
  const { primary, wire, replica, owner } = await replicated(t)
  const service = await replica()
  const { key, plaintext_key } = await service.issue()
  t.match(await service.verify(plaintext_key), { valid: true })
  await revoke(t, service, key.id)
  for (const happen of [
    async () => wire.cut(),
    async () => {
      await primary.stop('immediate')
      await primary.start()
    },
    async () => {
      const db = owner(primary)
      for (const table of ['keys', 'changes', 'replicas', 'database_identity']) await sqlOf(db, `VACUUM FULL ${table}`)
      await db.destroy()
    },
  ]) {
    await happen()
    wire.restore()
    await ready(service)
    t.match(await service.verify(plaintext_key), { valid: false, code: 'revoked' })
    t.notMatch(service.logs(), /went back/)
  }
})

/** A primary with a standby, and replicas that reach it by a wire. */
async function replicated(t: Test) {
  const primary = await createCluster(t, programs!)
  const urls = await createServiceDatabase(primary)
  const owner = (cluster: Cluster) => openDatabase({ url: cluster.url('mecha_keys_owner:made-up', 'mecha_keys'), size: 1, timeoutMs: 30_000, name: 'test' })
  const db = owner(primary)
  await migrate(db)
  await ensureLogin(db, 'control', urls.DATABASE_URL, 5000)
  await ensureLogin(db, 'runtime', urls.RUNTIME_DATABASE_URL, 5000)
  await db.destroy()
  const standby = await createCluster(t, programs!, { standbyOf: primary })
  const wire = await layWire(t, urls.DATABASE_URL)
  const replica = (way: Wire = wire) =>
    startService(t, { ROOT_SECRETS: 'r'.repeat(43) }, { owner: urls.MIGRATE_DATABASE_URL, control: way.through(urls.DATABASE_URL), runtime: way.through(urls.RUNTIME_DATABASE_URL), db })
  return { primary, standby, wire, replica, owner }
}

async function revoke(t: Test, service: Service, id: string): Promise<void> {
  await fresh(service)
  const answer = await service.call('POST', `/v1/keys/${id}/revoke`, { token: await service.token(), body: {}, headers: { prefer: 'wait=10' } })
  t.match(answer, { status: 200, body: { propagation: { replicas: 1, confirmed: 1 } } })
}

/** Resolves when the standby has what the primary has now. */
async function caughtUp(primary: Cluster, standby: Cluster): Promise<void> {
  const [at] = await query<{ lsn: string }>(primary, 'SELECT pg_current_wal_flush_lsn()::text AS lsn')
  await eventually(async () => (await query<{ has: boolean }>(standby, `SELECT pg_last_wal_replay_lsn() >= '${at!.lsn}'::pg_lsn AS has`))[0]!.has)
}

async function query<Row extends object>(cluster: Cluster, statement: string): Promise<Row[]> {
  const client = new Client({ connectionString: cluster.url('postgres', 'mecha_keys') })
  await client.connect()
  return (await client.query<Row>(statement).finally(() => client.end())).rows
}

const sqlOf = (db: Kysely<Database>, statement: string) => sql.raw(statement).execute(db)

async function held(service: Service, why: RegExp): Promise<void> {
  await eventually(async () => why.test((await service.call('GET', '/readyz')).text))
}

async function ready(service: Service): Promise<void> {
  await eventually(async () => (await service.call('GET', '/readyz')).status === 200)
  await fresh(service)
}
