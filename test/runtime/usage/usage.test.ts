/** When a key was last used, by which gateway, and when it was last presented after its end. */

import { sql } from 'kysely'
import t, { type Test } from 'tap'
import { openDatabase } from '../../../src/db/pool.js'
import { createHasher } from '../../../src/credentials/hash-queue.js'
import { requireRoots } from '../../../src/config.js'
import { createGateway as createGatewayOf } from '../../../src/control/gateways/create.js'
import { parsePublicId, publicId } from '../../../src/credentials/id.js'
import { recordRefusals, recordUses } from '../../../src/runtime/usage/store.js'
import { UsageRecorder, type Refusal, type Use } from '../../../src/runtime/usage/recorder.js'
import { applied } from '../../helpers/database.js'
import { eventually } from '../../helpers/eventually.js'
import { exchange } from '../../helpers/oauth.js'
import { fresh, startService, type Service } from '../../helpers/service.js'

const SOON = { USAGE_FLUSH_INTERVAL: '1s' }
const LONG = { USAGE_FLUSH_INTERVAL: '1h' }
const UNKNOWN = 'key_01jd9p5v3fe8rr2k7m4q9wx0zt'

const OLD = '2020-01-31T12:00:00.000Z'

t.test('POST 202: what a gateway reports shows with the key, and which gateway it was', async (t) => {
  const { service, key, gateway } = await usedLongAgo(t, SOON)
  t.match(await read(service, key.id), { first_used_at: /Z$/, last_used_by: gateway.id }, 'the first use, at once')
  const other = await createGateway(service)
  const at = new Date(Date.now() - 60_000).toISOString()
  t.match(await report(service, other.credential, [{ key_id: key.id, used_at: at }]), { status: 202, headers: { 'cache-control': 'no-store' }, body: {} })
  await eventually(async () => (await read(service, key.id)).last_used_at !== OLD)
  t.match(await read(service, key.id), { last_used_at: at, last_used_by: other.id })
})

t.test('a reported time that is later than now counts as now, and one that is earlier than what is known not at all', async (t) => {
  const { service, key, gateway } = await usedLongAgo(t, LONG)
  const other = await createGateway(service)
  const reportAndEnd = async (...times: string[]) => {
    const replica = await replicaOf(t, service)
    t.match(await report(replica, other.credential, times.map((used_at) => ({ key_id: key.id, used_at }))), { status: 202 })
    await replica.app.close()
    return read(service, key.id)
  }
  t.match(await reportAndEnd('2019-01-31T12:00:00Z', '0000-01-01T00:00:00Z'), { last_used_at: OLD, last_used_by: gateway.id })
  const before = new Date().toISOString()
  const { last_used_at, last_used_by } = await reportAndEnd('9999-12-31T23:59:59.999999Z', '2021-01-01T00:00:00Z')
  t.ok(last_used_at >= before && last_used_at <= new Date().toISOString(), last_used_at)
  t.equal(last_used_by, other.id)
})

t.test('of keys that are not a gateway\'s business nothing is written, and nothing is said', async (t) => {
  const { service, key, gateway } = await usedLongAgo(t, LONG)
  const [never, rival] = [await service.issue(), await createGateway(service, { org: 'rival' })]
  const reporting = await replicaOf(t, service)
  const used_at = new Date().toISOString()
  t.match(await report(reporting, rival.credential, [{ key_id: key.id, used_at }]), { status: 202, body: {} })
  t.match(await report(reporting, gateway.credential, [UNKNOWN, never.key.id, gateway.id.replace('gw_', 'key_')].map((key_id) => ({ key_id, used_at }))), { status: 202, body: {} })
  await reporting.app.close()
  t.match(await read(service, key.id), { last_used_at: OLD, last_used_by: gateway.id })
  t.match(await read(service, never.key.id), { first_used_at: null, last_used_at: null }, 'a key that was never used here')
  const rows = await service.database.db.selectFrom('key_usage').innerJoin('keys', 'id', 'key_id').select('last_used_by').where('kind', '=', 'gateway').execute()
  t.same(rows, [{ last_used_by: null }, { last_used_by: null }], 'no gateway is used by another')
})

t.test('no gateway pushes out what a gateway of another organization reports', async (t) => {
  const { service, key, gateway } = await usedLongAgo(t, LONG)
  const rival = await createGateway(service, { org: 'rival' })
  const reporting = await replicaOf(t, service)
  await report(reporting, gateway.credential, [{ key_id: key.id, used_at: '2021-01-01T00:00:00Z' }])
  await report(reporting, rival.credential, [{ key_id: key.id, used_at: '2022-01-01T00:00:00Z' }])
  await reporting.app.close()
  t.match(await read(service, key.id), { last_used_at: '2021-01-01T00:00:00.000Z', last_used_by: gateway.id })
})

t.test('a gateway of all organizations speaks of all keys', async (t) => {
  const { service, key } = await usedLongAgo(t, LONG)
  const { db } = service.database
  const roots = requireRoots(service.config)
  const author = { actor: 'cli:test', requestId: 'test', address: 'local', orgId: null, crews: undefined }
  const hasher = createHasher({ profile: 'high-entropy', version: async () => 2, queueSize: 1, onDone: () => {} })
  const { key: { id }, plaintext } = await createGatewayOf({ db, roots, config: service.config, hasher }, author, 'edge')
  const reporting = await replicaOf(t, service)
  await report(reporting, plaintext, [{ key_id: key.id, used_at: '2022-01-01T00:00:00Z' }])
  await reporting.app.close()
  t.match(await read(service, key.id), { last_used_at: '2022-01-01T00:00:00.000Z', last_used_by: publicId('gateway', id) })
})

t.test('POST 400, 401 and 413', async (t) => {
  const service = await startService(t)
  const { credential } = await createGateway(service)
  const use = { key_id: UNKNOWN, used_at: '2030-01-31T12:00:00Z' }
  for (const [body, field] of [
    [{}, 'body.uses'], [{ uses: [] }, 'body.uses'], [{ uses: Array(1001).fill(use) }, 'body.uses'], [{ uses: [use], more: 1 }, 'body.more'],
    [{ uses: [{ ...use, key_id: 'gw_01jd9p5v3fe8rr2k7m4q9wx0zt' }] }, 'body.uses.0.key_id'], [{ uses: [{ ...use, used_at: 'today' }] }, 'body.uses.0.used_at'],
    [{ uses: [use, { ...use, used_at: '2030-02-30T12:00:00Z' }] }, 'body.uses.1.used_at'], [{ uses: [{ key_id: UNKNOWN }] }, 'body.uses.0.used_at'],
  ] as const)
    t.match(await service.call('POST', '/v1/usage', { token: credential, body }), { status: 400, body: { code: 'invalid_request', errors: [{ field }] } }, JSON.stringify(body).slice(0, 80))
  t.match(await report(service, credential, Array(1000).fill({ ...use, used_at: '2030-01-31T12:00:00.123456789+00:00' })), { status: 202 }, 'the largest that is taken')
  t.match(await service.call('POST', '/v1/usage', { token: credential, body: { uses: [use], more: 'x'.repeat(200_000) } }), { status: 413 })
  t.match(await service.call('POST', '/v1/usage', { body: { uses: [use] } }), { status: 401 })
  t.match(await service.call('POST', '/v1/usage', { token: await service.token(), body: { uses: [use] } }), { status: 401 }, 'no operator')
})

t.test('last_used_by is the gateway that asked last, and nobody where none did', async (t) => {
  const service = await startService(t, { ...SOON, AUTHZ_LISTEN: '127.0.0.1:0' })
  const { key, plaintext_key } = await service.issue()
  const [first, second] = [await createGateway(service), await createGateway(service)]
  const isBy = (by: string | null) => eventually(async () => (await read(service, key.id)).last_used_by === by)
  await service.verify(plaintext_key, {}, first.credential)
  await isBy(first.id)
  await service.verify(plaintext_key, {}, second.credential)
  await isBy(second.id)
  t.match(await service.call('POST', '/v1/verify/batch', { token: first.credential, body: { keys: [{ key: plaintext_key }] } }), { status: 200 })
  await isBy(first.id)
  t.match(await service.authz!.inject({ url: '/v1/authz', headers: { 'x-mecha-key': plaintext_key } }), { statusCode: 200 })
  await isBy(null)
  await service.verify(plaintext_key, {}, second.credential)
  await isBy(second.id)
  t.match(await exchange(service, plaintext_key), { status: 200 })
  await isBy(null)
  t.notOk('last_used_by' in (await service.call('GET', '/v1/gateways', { token: await service.token() })).body.gateways[0], 'a gateway is used by itself')
})

for (const [code, end] of [['revoked', "revoked_at = now(), revoked_by = 'test'"], ['expired', 'expires_at = now()'], ['disabled', 'enabled = false']] as const)
  t.test(`a key that is presented though it is ${code} shows when and why`, async (t) => {
    const service = await startService(t, SOON)
    const [{ key, plaintext_key }, unused] = [await service.issue(), await service.issue()]
    await fresh(service)
    await service.verify(plaintext_key)
    await sql.raw(`UPDATE keys SET ${end} WHERE kind = 'mecha'`).execute(service.database.db)
    await applied(service.database)
    t.match(await read(service, key.id), { last_refused_at: null, last_refused_code: null })
    const isRefusedAfter = (id: string, before: string) => eventually(async () => (await read(service, id)).last_refused_at > before)
    t.same(await service.verify(plaintext_key), { valid: false, code }, 'as it is read anew')
    await isRefusedAfter(key.id, '')
    const { last_refused_at, last_refused_code, last_used_at } = await read(service, key.id)
    t.equal(last_refused_code, code)
    t.ok(last_refused_at >= last_used_at)
    t.same(await service.verify(plaintext_key), { valid: false, code }, 'from memory')
    await isRefusedAfter(key.id, last_refused_at)
    t.same(await service.verify(unused.plaintext_key), { valid: false, code })
    await isRefusedAfter(unused.key.id, '')
    t.match(await read(service, unused.key.id), { first_used_at: null, last_used_at: null, last_refused_code: code }, 'also one that was never used')
  })

t.test('a forged key, an unknown one, and what is asked of a good key write nothing', async (t) => {
  const service = await startService(t, LONG)
  const { key, plaintext_key } = await service.issue()
  const rival = await service.gateway({ org: 'rival' })
  const forged = await startService(t, LONG, service.database).then((other) => other.issue())
  await sql`DELETE FROM keys WHERE id = ${parsePublicId('mecha', forged.key.id)}`.execute(service.database.db)
  const ask = async () => {
    t.match(await service.verify(plaintext_key, { mecha: 'buyer^acmecorp' }), { code: 'mecha_mismatch' })
    t.match(await service.verify(plaintext_key, { scopes: ['x'] }), { code: 'insufficient_scope' })
    t.match(await service.verify(forged.plaintext_key), { code: 'unknown' })
    t.match(await service.verify(`${plaintext_key.slice(0, -1)}${plaintext_key.endsWith('0') ? '1' : '0'}`), { code: 'malformed' })
    t.match(await service.verify(plaintext_key, {}, rival), { code: 'unknown' }, 'nor what another organization asks')
  }
  await ask()
  await sql`UPDATE keys SET enabled = false WHERE kind = 'mecha'`.execute(service.database.db)
  await applied(service.database)
  t.match(await service.verify(plaintext_key, {}, rival), { code: 'unknown' })
  t.match(await service.verify(forged.plaintext_key), { code: 'unknown' })
  await service.app.close()
  t.same(await service.database.db.selectFrom('key_refusals').selectAll().execute(), [])
  t.match(await usage(service, 'mecha'), [], `${key.id} was not used`)
})

t.test('a gateway credential that is over shows when it was last presented, and the key that it asked about nothing', async (t) => {
  const service = await startService(t, SOON)
  const { credential, id } = await createGateway(service)
  const { plaintext_key } = await service.issue()
  await service.verify(plaintext_key, {}, credential)
  const token = await service.token()
  t.match(await service.call('POST', `/v1/gateways/${id}/revoke`, { token, headers: { prefer: 'wait=10' } }), { status: 200, body: { last_refused_at: null, last_refused_code: null } })
  t.match(await service.call('POST', '/v1/verify', { token: credential, body: { key: plaintext_key } }), { status: 401 })
  const shown = async () => (await service.call('GET', '/v1/gateways', { token })).body.gateways[0]
  await eventually(async () => (await shown()).last_refused_code === 'revoked')
  t.equal((await service.database.db.selectFrom('key_refusals').selectAll().execute()).length, 1)
})

t.test('times that are later than the database\'s own, from before its clock went back, are replaced', async (t) => {
  const service = await startService(t, LONG)
  const { key, plaintext_key } = await service.issue()
  const { id, credential } = await createGateway(service)
  await service.verify(plaintext_key, {}, credential)
  await setLastUse(service, '2999-01-01T00:00:00Z')
  await service.verify(plaintext_key, {}, credential)
  const { db } = service.database
  await db.insertInto('key_refusals').values({ key_id: parsePublicId('mecha', key.id)!, last_refused_at: new Date('2999-01-01T00:00:00Z'), last_refused_code: 'disabled' }).execute()
  await sql`UPDATE keys SET revoked_at = now(), revoked_by = 'test' WHERE kind = 'mecha'`.execute(db)
  await applied(service.database)
  await service.verify(plaintext_key, {}, credential)
  const before = Date.now()
  await service.app.close()
  const [row] = await usage(service, 'mecha')
  const refusal = await db.selectFrom('key_refusals').selectAll().executeTakeFirstOrThrow()
  for (const time of [row!.last_used_at, refusal.last_refused_at]) t.ok(Math.abs(time.getTime() - before) < 60_000, time.toISOString())
  t.equal(row!.last_used_by, parsePublicId('gateway', id))
  t.equal(refusal.last_refused_code, 'revoked')
})

t.test('replicas that write the same keys at the same time never wait in a circle', async (t) => {
  const service = await startService(t)
  const ids = await fillUsage(service, 2000)
  const replicas = Array.from({ length: 4 }, () => openDatabase({ url: service.database.runtime, size: 1, timeoutMs: 30_000, name: 'replica' }))
  t.teardown(() => Promise.all(replicas.map((db) => db.destroy())))
  let at = Date.now()
  await t.resolves(
    Promise.all(
      replicas.map(async (db) => {
        for (let round = 0; round < 12; round++) {
          const mine = shuffled(ids).slice(0, 1500)
          await recordUses(db, mine.map((id) => useOf(id, at++)))
          await recordRefusals(db, mine.map((id) => ({ id, at: at++, code: 'revoked' as const })))
        }
      }),
    ),
  )
})

t.test('many keys are written in pieces, each looked up by the index', async (t) => {
  const service = await startService(t)
  const ids = await fillUsage(service, 20_000)
  const { db } = service.database
  await sql`VACUUM ANALYZE keys, key_usage`.execute(db)
  const runtime = openDatabase({ url: service.database.runtime, size: 1, timeoutMs: 30_000, name: 'replica' })
  const pieces: number[] = []
  const recorder = recorderOf(t, {
    writeUses: (uses) => (pieces.push(uses.length), recordUses(runtime, uses)),
    writeRefusals: (refusals) => (pieces.push(refusals.length), recordRefusals(runtime, refusals)),
  })
  const scans = async () => {
    await sql`SELECT pg_stat_force_next_flush()`.execute(runtime)
    const { rows } = await sql<{ scans: number }>`SELECT sum(seq_scan)::int AS scans FROM pg_stat_user_tables WHERE relname IN ('keys', 'key_usage')`.execute(runtime)
    return rows[0]!.scans
  }
  const before = await scans()
  const gateway = { id: ids[0]!, org_id: 'acme' }
  for (const id of shuffled(ids)) {
    recorder.seen(useOf(id, 0), Date.now(), null)
    recorder.reported(id, Date.now(), gateway)
    recorder.refused(id, Date.now(), 'expired')
  }
  await recorder.flush()
  t.equal(await scans(), before, 'no table is read from its beginning to its end')
  t.equal(Math.max(...pieces), 1000)
  await runtime.destroy()
  const { rows } = await sql<{ uses: number; refusals: number }>`
    SELECT (SELECT count(*)::int FROM key_usage WHERE last_used_at > ${OLD}) AS uses, (SELECT count(*)::int FROM key_refusals) AS refusals`.execute(db)
  t.same(rows, [{ uses: ids.length, refusals: ids.length }])
})

t.test('what cannot be written is kept for the next attempt, and is written then', async (t) => {
  const service = await startService(t, SOON)
  const { key, plaintext_key } = await service.issue()
  const gateway = await createGateway(service)
  await service.verify(plaintext_key, {}, gateway.credential)
  await setLastUse(service, OLD)
  const { db } = service.database
  await sql`ALTER TABLE key_usage RENAME TO away`.execute(db)
  await service.call('POST', '/v1/verify', { token: gateway.credential, body: { key: plaintext_key } })
  await eventually(() => service.logs().includes('kept for the next attempt'))
  t.match((await service.call('GET', '/metrics')).text, /^mecha_keys_usage_pending [1-9]/m)
  await sql`ALTER TABLE away RENAME TO key_usage`.execute(db)
  await eventually(async () => (await read(service, key.id)).last_used_at !== OLD)
  t.match((await service.call('GET', '/metrics')).text, /^mecha_keys_usage_dropped 0$/m)
})

t.test('what waits is bounded: the oldest is dropped, and counted', async (t) => {
  const written: string[] = []
  let isDown = true
  const write = async (notes: readonly (Use | Refusal)[]) => {
    if (isDown) throw new Error('the database is away')
    written.push(...notes.map(({ id }) => id))
  }
  const recorder = recorderOf(t, { max: 100, writeUses: write, writeRefusals: write, onError: () => {} })
  const uses = Array.from({ length: 250 }, (_, n) => useOf(String(n).padStart(4, '0'), 0))
  for (const use of uses) {
    recorder.seen(use, 1, null)
    if (Number(use.id) % 50 === 0) await recorder.flush()
  }
  t.ok(recorder.pending <= 100)
  t.equal(recorder.pending + recorder.dropped, 250, 'nothing is lost without being counted')
  isDown = false
  await recorder.flush()
  t.ok(written.includes('0249') && !written.includes('0000'))
  recorder.seen(uses[0]!, 2, null)
  await recorder.flush()
  t.ok(written.includes('0000'), 'a key that was dropped is noted again at its next use')
})

/** A key that was used long ago, at a gateway, and nothing of it that waits to be written. */
async function usedLongAgo(t: Test, environment: typeof LONG) {
  const first = await startService(t, LONG)
  const { key, plaintext_key } = await first.issue()
  const gateway = await createGateway(first)
  await first.verify(plaintext_key, {}, gateway.credential)
  await first.app.close()
  await setLastUse(first, OLD)
  return { service: await replicaOf(t, first, environment), key, plaintext_key, gateway }
}

function replicaOf(t: Test, { config, database }: Service, environment = LONG): Promise<Service> {
  return startService(t, { ROOT_SECRETS: config.ROOT_SECRETS!.join(), ...environment }, database)
}

interface Report { readonly key_id: string; readonly used_at: string }

function report(service: Service, token: string, uses: readonly Report[]) {
  return service.call('POST', '/v1/usage', { token, body: { uses } })
}

async function createGateway(service: Service, identity: { org?: string } = {}): Promise<{ id: string; credential: string }> {
  const { body } = await service.call('POST', '/v1/gateways', { token: await service.token(identity), body: { name: 'edge' } })
  return { id: body.gateway.id, credential: body.plaintext_key }
}

async function read(service: Service, id: string): Promise<any> {
  return (await service.call('GET', `/v1/keys/${id}`, { token: await service.token() })).body
}

function usage({ database: { db } }: Service, ...kinds: ('mecha' | 'gateway')[]) {
  return db.selectFrom('key_usage').innerJoin('keys', 'id', 'key_id').select(['kind', 'last_used_at', 'last_used_by'])
    .$if(kinds.length > 0, (query) => query.where('kind', 'in', kinds)).orderBy('key_id').execute()
}

async function setLastUse({ database: { db } }: Service, at: string): Promise<void> {
  await db.updateTable('key_usage').set({ last_used_at: new Date(at) }).where('key_id', 'in', db.selectFrom('keys').select('id').where('kind', '=', 'mecha')).execute()
}

function useOf(id: string, usedAt: number): Use {
  return { id, org_id: 'acme', usedAt, usedBy: null, isGathered: false }
}

/** Rows of keys that were used long ago. */
async function fillUsage(service: Service, count: number): Promise<string[]> {
  await service.issue()
  const { db } = service.database
  const { rows } = await sql<{ id: string }>`
    INSERT INTO keys (id, kind, org_id, mecha, hash, tag_root, pepper_root, created_at, created_by)
    SELECT gen_random_uuid(), kind, org_id, mecha, hash, tag_root, pepper_root, created_at, created_by FROM keys, generate_series(1, ${count}::int) RETURNING id`.execute(db)
  await sql`INSERT INTO key_usage (key_id, first_used_at, last_used_at) SELECT id, ${OLD}, ${OLD} FROM unnest(${rows.map(({ id }) => id)}::uuid[]) AS made (id)`.execute(db)
  return rows.map(({ id }) => id)
}

function recorderOf(t: Test, parts: Partial<ConstructorParameters<typeof UsageRecorder>[0]>): UsageRecorder {
  const onError = (error: unknown) => t.fail(String(error))
  const recorder = new UsageRecorder({ writeUses: async () => {}, writeRefusals: async () => {}, intervalMs: 3_600_000, max: 100_000, onError, ...parts })
  t.teardown(() => recorder.stop())
  return recorder
}

function shuffled<T>(list: readonly T[]): T[] {
  return list.map((item) => ({ item, by: Math.random() })).sort((a, b) => a.by - b.by).map(({ item }) => item)
}
