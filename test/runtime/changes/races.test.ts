/** Races of the change feed, on a real PostgreSQL. */

import { Client } from 'pg'
import t, { type Test } from 'tap'
import { applied, createDatabase, type TestDatabase } from '../../helpers/database.js'
import { eventually } from '../../helpers/eventually.js'
import { fresh, startService, type Service } from '../../helpers/service.js'
import { layWire } from '../../helpers/wire.js'

t.test('a transaction that wrote its change early and commits late is applied', async (t) => {
  const service = await startService(t)
  const [early, other] = [await held(service), await held(service)]
  const [first, second] = [await connect(t, service.database), await connect(t, service.database)]
  await first.query('BEGIN')
  await first.query('UPDATE keys SET enabled = false WHERE id = $1', [early.id])
  await second.query('UPDATE keys SET enabled = false WHERE id = $1', [other.id])
  await applied(service.database)
  t.match(await service.verify(other.plaintext), { code: 'disabled' })
  t.match(await service.verify(early.plaintext), { valid: true })
  await first.query('COMMIT')
  await applied(service.database)
  t.match(await service.verify(early.plaintext), { code: 'disabled' })
})

t.test('a change during a first use that several wait for is seen by all of them, though the feed is silent', async (t) => {
  const database = await createDatabase(t)
  const wire = await layWire(t, database.runtime)
  const service = await startService(t, { DATABASE_DIRECT_URL: wire.through(database.runtime) }, database)
  const { plaintext_key } = await service.issue()
  await fresh(service)
  await service.verify('')
  const [admin, watcher] = [await connect(t, database), await connect(t, database)]
  await admin.query('BEGIN')
  await admin.query("UPDATE keys SET enabled = false WHERE kind = 'mecha'")
  const answers = Array.from({ length: 8 }, () => service.verify(plaintext_key))
  const isWaiting = async () => (await watcher.query("SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'")).rowCount === 1
  await eventually(isWaiting)
  wire.silence()
  await admin.query('COMMIT')
  t.same(await Promise.all(answers), Array(8).fill({ valid: false, code: 'disabled' }))
})

t.test('a feed whose connection is terminated comes back, and applies what it missed', async (t) => {
  const service = await startService(t)
  const key = await held(service)
  const admin = await connect(t, service.database)
  const { rowCount } = await admin.query("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'mecha-keys feed' AND datname = current_database()")
  t.equal(rowCount, 1)
  await admin.query('UPDATE keys SET enabled = false WHERE id = $1', [key.id])
  await applied(service.database)
  t.match(await service.verify(key.plaintext), { code: 'disabled' })
})

t.test('a change whose notification is lost is found by the poll', async (t) => {
  const service = await startService(t, {}, await createDatabase(t))
  const key = await held(service)
  const admin = await connect(t, service.database)
  const { rows } = await admin.query("SELECT pg_get_functiondef('keys_changed'::regproc) AS source")
  await admin.query(rows[0].source.replace(/PERFORM pg_notify.*;/, ''))
  await admin.query('UPDATE keys SET enabled = false WHERE id = $1', [key.id])
  const isApplied = async () => (await service.verify(key.plaintext)).code === 'disabled'
  await eventually(isApplied)
})

t.test('notifications that come many times, with any payload, break nothing', async (t) => {
  const service = await startService(t)
  const key = await held(service)
  const admin = await connect(t, service.database)
  await admin.query("SELECT pg_notify('mecha_keys_changes', 'noise ' || n) FROM generate_series(1, 1000) n")
  await admin.query('UPDATE keys SET enabled = false WHERE id = $1', [key.id])
  await applied(service.database)
  t.match(await service.verify(key.plaintext), { code: 'disabled' })
})

t.test('a row deleted by hand is unknown to a replica that held it', async (t) => {
  const service = await startService(t)
  const key = await held(service)
  const admin = await connect(t, service.database)
  await admin.query('DELETE FROM key_usage WHERE key_id = $1', [key.id])
  await admin.query('DELETE FROM keys WHERE id = $1', [key.id])
  await applied(service.database)
  t.match(await service.verify(key.plaintext), { code: 'unknown' })
})

t.test('what changes while a key is read and matched counts, by any way the change is made', async (t) => {
  for (const [change, code] of [["revoked_at = now(), revoked_by = 'test'", 'revoked'], ['enabled = false', 'disabled'], ['expires_at = now()', 'expired']] as const) {
    const service = await startService(t)
    const { plaintext_key } = await service.issue()
    const gateway = await service.gateway()
    await service.verify('', {}, gateway)
    const admin = await connect(t, service.database)
    // The first use waits for this change, after the row has been read as it was.
    await admin.query('BEGIN')
    await admin.query(`UPDATE keys SET ${change} WHERE kind = 'mecha'`)
    const verdict = service.verify(plaintext_key, {}, gateway)
    const watcher = await connect(t, service.database)
    const isWaiting = async () => (await watcher.query("SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'")).rowCount === 1
    await eventually(isWaiting)
    await admin.query('COMMIT')
    t.same(await verdict, { valid: false, code }, `${code} while it was verified`)
    t.same(await service.verify(plaintext_key, {}, gateway), { valid: false, code }, 'and afterwards')
  }
})

for (const [how, ask] of [
  ['alone', async (service: Service, gateway: string, key: string) => service.verify(key, {}, gateway)],
  ['in a batch', async (service: Service, token: string, key: string) => (await service.call('POST', '/v1/verify/batch', { token, body: { keys: [{ key }] } })).body.results[0]],
] as const)
  t.test(`a key whose end comes while its first use is waited for has expired when the answer is given: asked ${how}`, async (t) => {
    const service = await startService(t, { DATABASE_TIMEOUT: '30s' })
    const gateway = await service.gateway()
    await service.verify('', {}, gateway)
    const [admin, watcher] = [await connect(t, service.database), await connect(t, service.database)]
    const { plaintext_key } = await service.issue({ expires_in: 4 })
    await admin.query('BEGIN')
    await admin.query("SELECT FROM keys WHERE kind = 'mecha' FOR UPDATE")
    const verdict = ask(service, gateway, plaintext_key)
    const isWaiting = async () => (await watcher.query("SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'")).rowCount === 1
    await eventually(isWaiting)
    const isOver = async () => (await watcher.query("SELECT FROM keys WHERE kind = 'mecha' AND expires_at < clock_timestamp()")).rowCount === 1
    t.notOk(await isOver(), 'it was good when it was read')
    await eventually(isOver)
    await admin.query('COMMIT')
    t.same(await verdict, { valid: false, code: 'expired' })
    const { rowCount: used } = await watcher.query("SELECT FROM key_usage JOIN keys ON keys.id = key_id WHERE kind = 'mecha'")
    t.equal(used, 0, 'and was never used')
  })

t.test('a revocation that commits after a row was read, and before it is kept, is not overtaken by it', async (t) => {
  const first = await startService(t, {}, await createDatabase(t))
  const gateway = await first.gateway()
  const { key, plaintext_key } = await first.issue()
  await first.verify(plaintext_key, {}, gateway)
  const wire = await layWire(t, first.database.runtime)
  const second = await startService(t, { ROOT_SECRETS: first.config.ROOT_SECRETS!.join(), DATABASE_DIRECT_URL: first.database.runtime }, { ...first.database, runtime: wire.through(first.database.runtime) })
  await fresh(second)
  await second.verify('', {}, gateway)

  const isRead = wire.hold()
  const verdict = second.verify(plaintext_key, {}, gateway)
  await isRead
  const { body } = await first.call('POST', `/v1/keys/${key.id}/revoke`, { token: await first.token(), headers: { prefer: 'wait=10' } })
  t.match(body.propagation, { replicas: 2, confirmed: 2 })
  wire.release()
  t.same(await verdict, { valid: false, code: 'revoked' })
  t.same(await second.verify(plaintext_key, {}, gateway), { valid: false, code: 'revoked' })
})

t.test('keys that are truncated, or given to another Mecha, by hand are unknown', async (t) => {
  const service = await startService(t, {}, await createDatabase(t))
  const [key, other] = [await held(service), await held(service)]
  const gateway = await service.gateway()
  const { db } = service.database
  await db.insertInto('mechas').values({ handle: 'boss^acmecorp', org_id: 'acme' }).execute()
  await db.updateTable('keys').set({ mecha: 'boss^acmecorp' }).where('id', '=', key.id).execute()
  await applied(service.database)
  t.same(await service.verify(key.plaintext), { valid: false, code: 'unknown' })
  t.match(await service.verify(other.plaintext, {}, gateway), { valid: true })
  const admin = await connect(t, service.database)
  await admin.query('TRUNCATE keys CASCADE')
  await applied(service.database)
  t.match(await service.call('POST', '/v1/verify', { token: gateway, body: { key: other.plaintext } }), { status: 401 }, 'the gateway is gone as well')
})

/** A key that the replica has in memory. */
async function held(service: Service): Promise<{ id: string; plaintext: string }> {
  const { plaintext_key: plaintext } = await service.issue()
  await service.verify(plaintext)
  const { id } = await service.database.db.selectFrom('keys').select('id').where('kind', '=', 'mecha').orderBy('id', 'desc').executeTakeFirstOrThrow()
  return { id, plaintext }
}

async function connect(t: Test, { owner }: TestDatabase): Promise<Client> {
  const client = new Client({ connectionString: owner })
  await client.connect()
  t.teardown(() => client.end())
  return client
}
