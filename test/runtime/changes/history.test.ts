/** One history: what is read from the database is of the history that the feed follows, and nothing empties or evades the feed. */

import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { sql } from 'kysely'
import { Client } from 'pg'
import t, { type Test } from 'tap'
import { publicId } from '../../../src/credentials/id.js'
import { openDatabase } from '../../../src/db/pool.js'
import { PACKAGE_ROOT } from '../../../src/package-root.js'
import { Clock } from '../../../src/clock.js'
import { sweepChanges } from '../../../src/runtime/changes/sweep.js'
import { applied, createDatabase, type TestDatabase } from '../../helpers/database.js'
import { eventually } from '../../helpers/eventually.js'
import { costs } from '../../helpers/metrics.js'
import { exchanged, introspect } from '../../helpers/oauth.js'
import { startPair } from '../../helpers/own-server.js'
import { fresh, startService, type Answer, type Service } from '../../helpers/service.js'
import { layWire } from '../../helpers/wire.js'

for (const [how, staysOnOldServer] of [['a moved address', false], ['a pooler that keeps its server', true]] as const)
  t.test(`feed and queries that lead to two servers, by ${how}: what is revoked on the new primary is accepted no more`, async (t) => {
    const { service, ask, key, promote, leadQueriesTo } = await twoServers(t)
    const promoted = await promote()
    if (!staysOnOldServer) leadQueriesTo(promoted.runtime)
    const other = await startService(t, { ROOT_SECRETS: service.config.ROOT_SECRETS!.join() }, promoted)
    await fresh(other)
    const revoked = await other.call('POST', `/v1/keys/${key.id}/revoke`, { token: await other.token(), headers: { prefer: 'wait=10' } })
    t.match(revoked, { status: 200, body: { status: 'revoked' } })

    // Asked again and again: a first answer may be right and the one after it out of what was kept.
    let answer: Answer
    for (let i = 0; i < 5; i++) {
      answer = await ask()
      t.not(answer.body.valid, true, `not accepted: ${answer.status} ${answer.body.code}`)
    }
    if (staysOnOldServer) {
      t.match(answer!, { status: 503, body: { code: 'feed_stale' } }, 'nobody can say which server counts')
      t.match(service.logs(), /another history/)
      leadQueriesTo(promoted.runtime)
    }
    await eventually(async () => (answer = await ask()).status === 200)
    t.same(answer!.body, { valid: false, code: 'revoked' })
  })

t.test('a restore in place is noticed: what the dump does not know, or knows otherwise, is accepted no more', async (t) => {
  const service = await startService(t, {}, await createDatabase(t))
  const disabled = await held(service)
  const gateway = await service.gateway()
  const { owner } = service.database
  const saved = await save(owner)
  const later = await held(service)
  await service.verify(later.plaintext, {}, gateway)
  await service.verify(disabled.plaintext, {}, gateway)
  for (const row of saved.keys) if (row.id === disabled.id) row.enabled = false
  await restore(owner, saved)
  await eventually(async () => (await service.verify(later.plaintext, {}, gateway)).code === 'unknown')
  t.same(await service.verify(disabled.plaintext, {}, gateway), { valid: false, code: 'disabled' })
})

t.test('a session that fires no triggers is told of all the same', async (t) => {
  const service = await startService(t)
  const key = await held(service)
  const admin = await connect(t, service.database)
  await admin.query('SET session_replication_role = replica')
  await admin.query('UPDATE keys SET enabled = false WHERE id = $1', [key.id])
  await applied(service.database)
  t.match(await service.verify(key.plaintext), { code: 'disabled' })
})

for (const statement of ['TRUNCATE changes', 'DELETE FROM changes', 'UPDATE changes SET key_id = gen_random_uuid()'])
  t.test(`${statement} by hand takes no change away: every key may have changed`, async (t) => {
    const service = await startService(t)
    const key = await held(service)
    const admin = await connect(t, service.database)
    await admin.query('BEGIN')
    await admin.query('UPDATE keys SET enabled = false WHERE id = $1', [key.id])
    await admin.query(statement)
    await admin.query('COMMIT')
    await applied(service.database)
    t.match(await service.verify(key.plaintext), { code: 'disabled' })
  })

t.test('a follower who was told less than what has been swept begins anew', async (t) => {
  const database = await createDatabase(t)
  const wire = await layWire(t, database.runtime)
  const service = await startService(t, { DATABASE_DIRECT_URL: wire.through(database.runtime) }, database)
  const key = await held(service)
  const admin = await connect(t, database)
  // The poll that would tell of it is on its way while somebody removes the change, and with it all who could be in the way.
  await wire.hold()
  await admin.query('UPDATE keys SET enabled = false WHERE id = $1', [key.id])
  await admin.query('TRUNCATE replicas')
  await eventually(async () => {
    await admin.query('SELECT sweep_changes(pg_current_snapshot())')
    return (await admin.query('SELECT FROM changes')).rowCount === 0
  })
  wire.release()
  await eventually(async () => (await service.verify(key.plaintext)).code === 'disabled')
})

t.test('a sweep leaves what a follower has not applied, and says how far it went', async (t) => {
  const service = await startService(t, {}, await createDatabase(t))
  const key = await held(service)
  const [admin, runtime] = [await connect(t, service.database), await connect(t, service.database, 'runtime')]
  await admin.query('UPDATE keys SET name = $2 WHERE id = $1', [key.id, 'one'])
  await applied(service.database)
  await service.app.close()
  // A follower that is past the first change: transactions that were open meanwhile are over, in whatever database of this server.
  const { rows } = await admin.query('SELECT max(xid)::text AS first FROM changes')
  await eventually(async () => {
    const { rows: [now] } = await admin.query('SELECT pg_current_snapshot()::text AS snapshot, pg_snapshot_xmin(pg_current_snapshot()) > $1::xid8 AS "isPast"', [rows[0].first])
    rows[0].snapshot = now.snapshot
    return now.isPast as boolean
  })
  await runtime.query("SELECT confirm_feed(gen_random_uuid(), '\\x00112233445566778899aabbccddeeff', $1::pg_snapshot, '', 1000)", [rows[0].snapshot])
  await admin.query('UPDATE keys SET name = $2 WHERE id = $1', [key.id, 'two'])
  const isSwept = async () => {
    await runtime.query('SELECT sweep_changes(pg_current_snapshot())')
    return (await admin.query('SELECT swept_below = pg_snapshot_xmin($1::pg_snapshot) AS told FROM change_horizon', [rows[0].snapshot])).rows[0].told as boolean
  }
  await eventually(isSwept)
  t.equal((await admin.query('SELECT FROM changes')).rowCount, 1, 'the second is kept')
})

t.test('an hour of changes is swept some at a time, by one replica, and beside the feed', async (t) => {
  const service = await startService(t, {}, await createDatabase(t))
  const [admin, other] = [await connect(t, service.database), await connect(t, service.database, 'runtime')]
  const MANY = 12_000
  await admin.query('INSERT INTO changes (key_id) SELECT gen_random_uuid() FROM generate_series(1, $1)', [MANY])
  const left = async () => (await admin.query('SELECT count(*)::int AS count FROM changes')).rows[0].count as number
  const snapshot = async () => (await admin.query('SELECT pg_current_snapshot()::text AS now')).rows[0].now as string
  const runtime = openDatabase({ url: service.database.runtime, size: 1, timeoutMs: 30_000, name: 'test sweep' })
  t.teardown(() => runtime.destroy())
  await applied(service.database)

  await other.query('BEGIN')
  // It waits until what was open elsewhere on the server is over, and then removes so many and no more.
  await eventually(async () => (await other.query("SELECT sweep_changes($1::pg_snapshot, '0', 10)::text AS reached", [await snapshot()])).rows[0].reached !== null)
  await sweepChanges(runtime, await snapshot())
  t.equal(await left(), MANY, 'nothing, for another one sweeps')
  await other.query('COMMIT')
  t.equal(await left(), MANY - 10)

  let pieces = 0
  await sweepChanges(runtime, await snapshot(), () => ++pieces <= 2)
  t.equal(await left(), MANY - 10 - 2 * 5000, 'and it can be told to stop')
  await eventually(async () => (await sweepChanges(runtime, await snapshot()), (await left()) === 0))
  t.equal((await service.call('GET', '/metrics')).text.match(/^mecha_keys_feed_losses_total (\d+)$/m)![1], '0')
})

t.test('a change that no feed tells of counts within the bound of REVALIDATE_AFTER', async (t) => {
  const service = await startService(t, { REVALIDATE_AFTER: '2s' }, await createDatabase(t))
  const [key, other] = [await held(service), await held(service)]
  const admin = await connect(t, service.database)
  await admin.query('ALTER TABLE keys DISABLE TRIGGER keys_changed')
  await admin.query('UPDATE keys SET enabled = false WHERE id = $1', [key.id])
  t.match(await service.verify(key.plaintext), { valid: true }, 'nobody has told of it')
  await eventually(async () => (await service.verify(key.plaintext)).code === 'disabled')
  t.match(await service.verify(other.plaintext), { valid: true })
})

t.test('what was read a moment ago is not compared at once, however little there is of it', async (t) => {
  const service = await startService(t)
  const gateway = await service.gateway()
  await fresh(service)
  await service.verify('', {}, gateway)
  const before = await costs(service)
  // The first look at what is due is a second after the start.
  await sleep(1500)
  t.same(await costs(service), before)
})

t.test('a gateway is told which of the keys that it holds are not what they were', async (t) => {
  const service = await startService(t)
  const [key, same, foreign] = [await service.issue(), await service.issue(), await service.issue({ mecha: 'rival^seoul' }, { org: 'rival' })]
  const token = await service.gateway()
  await fresh(service)
  const versionOf = async ({ plaintext_key }: { plaintext_key: string }) => {
    const { headers } = await service.call('POST', '/v1/verify', { token, body: { key: plaintext_key }, headers: { prefer: 'freshness' } })
    t.match(headers, { 'x-feed-age': /^\d+$/, 'x-feed-history': /^[\w-]{11}$/ })
    return headers['x-key-version'] as string
  }
  const keys = [{ key_id: key.key.id, version: await versionOf(key) }, { key_id: same.key.id, version: await versionOf(same) }]
  const ask = (body: object) => service.call('POST', '/v1/revalidate', { token, body })
  t.match(await ask({ keys }), { status: 200, body: { changed: [] }, headers: { 'x-feed-history': /^[\w-]{11}$/ } })
  await service.call('PATCH', `/v1/keys/${key.key.id}`, { token: await service.token(), body: { name: 'other' } })
  t.same((await ask({ keys })).body, { changed: [key.key.id] })
  t.same((await ask({ keys: [{ key_id: foreign.key.id, version: '1' }, { key_id: same.key.id, version: 'none' }] })).body.changed.sort(), [foreign.key.id, same.key.id].sort())
  const { id, version } = await service.database.db.selectFrom('keys').select(['id', sql<string>`xmin::text`.as('version')]).where('kind', '=', 'gateway').executeTakeFirstOrThrow()
  t.same((await ask({ keys: [{ key_id: publicId('mecha', id), version }] })).body, { changed: [publicId('mecha', id)] }, "a gateway's credential is no key, though its row is as it was")
  t.match(await ask({ keys: [] }), { status: 400 })
  t.match(await service.call('POST', '/v1/revalidate', { body: { keys } }), { status: 401 })
})

t.test('an introspection whose row is overtaken by a revocation does not call the token active', async (t) => {
  const first = await startService(t, { PUBLIC_URL: 'https://keys.example.com' }, await createDatabase(t))
  const gateway = await first.gateway()
  const { key, plaintext_key } = await first.issue()
  const jwt = await exchanged(first, plaintext_key)
  const wire = await layWire(t, first.database.runtime)
  const second = await startService(t, { PUBLIC_URL: 'https://keys.example.com', ROOT_SECRETS: first.config.ROOT_SECRETS!.join(), DATABASE_DIRECT_URL: first.database.runtime }, { ...first.database, runtime: wire.through(first.database.runtime) })
  await fresh(second)
  // The gateway and the signing keys are in memory, so that what is held back below is the key's row.
  t.same(await introspect(second, gateway, 'a.b.c'), { active: false })
  const isRead = wire.hold()
  const answer = introspect(second, gateway, jwt)
  await isRead
  const { body } = await first.call('POST', `/v1/keys/${key.id}/revoke`, { token: await first.token(), headers: { prefer: 'wait=10' } })
  t.match(body.propagation, { replicas: 2, confirmed: 2 })
  wire.release()
  t.same(await answer, { active: false })
})

t.test('a machine that was suspended does not answer by what it knew before', async (t) => {
  const database = await createDatabase(t)
  const wire = await layWire(t, database.runtime)
  let slept = 0
  // A monotonic clock stands still in suspend; the wall clock does not.
  const clock = new Clock({ monotonic: () => performance.now(), wall: () => Date.now() + slept })
  const service = await startService(t, { REVOCATION_MAX_STALENESS: '1m', DATABASE_DIRECT_URL: wire.through(database.runtime) }, database, { clock })
  const key = await held(service)
  const admin = await connect(t, database)
  wire.silence()
  await admin.query('UPDATE keys SET enabled = false WHERE id = $1', [key.id])
  t.match(await service.verify(key.plaintext), { valid: true }, 'within the bound')
  slept += 61_000
  t.match(await service.verify(key.plaintext), { code: 'disabled' })
})

t.test('a clock that has jumped either way is no measure until the feed has been asked again', async (t) => {
  let [monotonic, wall] = [1000, 1_000_000]
  const clock = new Clock({ monotonic: () => monotonic, wall: () => wall })
  const pass = (ms: number, wallMs = ms) => ((monotonic += ms), (wall += wallMs), clock.now(), clock.jumps)
  t.equal(pass(10), 0)
  t.equal(pass(10_000), 0)
  t.equal(pass(1, 1.4), 0, 'another resolution')
  t.equal(pass(3_600_000, 3_600_000 * 1.0005), 0, 'slewed')
  t.equal(pass(3_600_000, 3_600_000 * 0.9995), 0, 'slewed back')
  t.equal(pass(1, 9400), 1, 'suspended')
  t.equal(pass(1), 1)
  t.equal(pass(1, -3_600_000), 2, 'set back')
  t.equal(pass(5000), 2)
  let told = 0
  clock.onJump(() => told++)
  pass(0, 100)
  t.equal(told, 1)
})

t.test('the runtime login cannot take a change away, nor speak or stand in the way for another replica', async (t) => {
  const service = await startService(t, {}, await createDatabase(t))
  await fresh(service)
  const [runtime, admin] = [await connect(t, service.database, 'runtime'), await connect(t, service.database)]
  for (const statement of ['DELETE FROM changes', 'TRUNCATE changes', 'DO $$ BEGIN LOCK TABLE changes IN ROW EXCLUSIVE MODE; END $$', 'UPDATE change_horizon SET swept_below = swept_below', 'TRUNCATE replicas'])
    await t.rejects(runtime.query(statement), { code: '42501' }, statement)
  const rows = async () => (await admin.query('SELECT id, secret_digest, bound_ms, history FROM replicas')).rows
  const [mine] = await rows()
  t.match(mine, { bound_ms: 10_000, history: /^\d+\.\d+ base\/\d+\/\d+ base\/\d+\/\d+$/ })
  t.equal((await runtime.query('DELETE FROM replicas')).rowCount, 0)
  t.equal((await runtime.query("UPDATE replicas SET snapshot = pg_current_snapshot(), seen_at = 'infinity'")).rowCount, 0)
  const wrong = '\\x00112233445566778899aabbccddeeff'
  await t.rejects(runtime.query('SELECT confirm_feed($1, $2, pg_current_snapshot(), $3, 1000)', [mine.id, wrong, 'x']), { code: '42501' })
  await runtime.query('SELECT leave_feed($1, $2)', [mine.id, wrong])
  t.same(await rows(), [mine])
  await service.app.close()
  t.same(await rows(), [], 'the replica itself says goodbye')
})

t.test('which history is of the accepted database is written down when a feed connects, and not of a database that is held', async (t) => {
  const database = await createDatabase(t)
  const admin = await connect(t, database)
  const verified = async () => (await admin.query('SELECT verified_in = unheld_history() AS verified FROM database_identity')).rows[0].verified
  await admin.query('UPDATE database_identity SET verified_in = NULL, lost_at = now()')
  const service = await startService(t, {}, database)
  await eventually(async () => (await admin.query('SELECT count(*)::int AS n FROM pg_stat_activity WHERE datname = current_database() AND query LIKE $1', ['%AS is_swept%'])).rows[0].n > 0)
  t.equal(await verified(), null)
  await service.app.close()
  await admin.query('UPDATE database_identity SET lost_at = NULL')
  await fresh(await startService(t, {}, database))
  t.equal(await verified(), true)
})

/** A service on a primary that a standby follows; its feed goes another way than its queries. */
async function twoServers(t: Test) {
  const { primary, caughtUp, promote: promoteStandby } = await startPair(t)
  const [queries, feed] = [await layWire(t, primary.runtime), await layWire(t, primary.runtime)]
  const service = await startService(t, { DATABASE_DIRECT_URL: feed.through(primary.runtime) }, { ...primary, runtime: queries.through(primary.runtime) })
  const { key, plaintext_key } = await service.issue()
  const gateway = await service.gateway()
  const ask = () => service.call('POST', '/v1/verify', { token: gateway, body: { key: plaintext_key } })
  await fresh(service)
  t.match(await ask(), { body: { valid: true } })
  await caughtUp()

  /** The standby becomes a primary beside the old one. Connections of queries stay where they are. */
  async function promote(): Promise<TestDatabase> {
    const promoted = await promoteStandby()
    feed.leadTo(promoted.runtime)
    feed.cut()
    feed.restore()
    await eventually(async () => (await sql<{ here: boolean }>`SELECT EXISTS (SELECT FROM pg_stat_activity WHERE application_name = 'mecha-keys feed') AS here`.execute(primary.db)).rows[0]!.here === false)
    return promoted
  }
  return { service, key, ask, promote, leadQueriesTo: (url: string) => queries.leadTo(url) }
}

/** What a dump holds of the keys. */
async function save(owner: string): Promise<{ mechas: any[]; keys: any[] }> {
  const client = new Client({ connectionString: owner })
  await client.connect()
  const all = async (table: string) => (await client.query(`SELECT to_jsonb(${table}) AS row FROM ${table}`)).rows.map(({ row }) => row)
  const saved = { mechas: await all('mechas'), keys: await all('keys') }
  await client.end()
  return saved
}

/** Makes every table anew in one transaction, as `pg_restore --clean --single-transaction` does, with what was saved. */
async function restore(owner: string, { mechas, keys }: Awaited<ReturnType<typeof save>>): Promise<void> {
  const client = new Client({ connectionString: owner })
  await client.connect()
  await client.query('BEGIN')
  await client.query('DROP SCHEMA public CASCADE')
  await client.query('CREATE SCHEMA public')
  await client.query('CREATE TABLE kysely_migration (name varchar(255) PRIMARY KEY, timestamp varchar(255) NOT NULL)')
  const folder = join(PACKAGE_ROOT, 'migrations')
  for (const file of readdirSync(folder).sort()) {
    await client.query(readFileSync(join(folder, file), 'utf8'))
    await client.query("INSERT INTO kysely_migration VALUES ($1, '')", [file.replace('.sql', '')])
  }
  await client.query('INSERT INTO mechas SELECT * FROM jsonb_populate_recordset(NULL::mechas, $1)', [JSON.stringify(mechas)])
  const { rows } = await client.query("SELECT string_agg(attname, ', ') AS columns FROM pg_attribute WHERE attrelid = 'keys'::regclass AND attnum > 0 AND attgenerated = '' AND NOT attisdropped")
  const { columns } = rows[0]
  await client.query(`INSERT INTO keys (${columns}) SELECT ${columns} FROM jsonb_populate_recordset(NULL::keys, $1)`, [JSON.stringify(keys)])
  await client.query('COMMIT')
  await client.end()
}

/** A key that the replica has in memory. */
async function held(service: Service): Promise<{ id: string; plaintext: string }> {
  const { plaintext_key: plaintext } = await service.issue()
  await fresh(service)
  await service.verify(plaintext)
  const { id } = await service.database.db.selectFrom('keys').select('id').where('kind', '=', 'mecha').orderBy('id', 'desc').executeTakeFirstOrThrow()
  return { id, plaintext }
}

async function connect(t: Test, database: TestDatabase, as: 'owner' | 'runtime' = 'owner'): Promise<Client> {
  const client = new Client({ connectionString: database[as] })
  await client.connect()
  t.teardown(() => client.end())
  return client
}
