import { randomBytes } from 'node:crypto'
import { Client } from 'pg'
import t, { type Test } from 'tap'
import { newId } from '../../../src/credentials/id.js'
import { deriveRoot } from '../../../src/credentials/roots.js'
import { makeToken } from '../../../src/credentials/token.js'
import { createDatabase } from '../../helpers/database.js'
import { eventually } from '../../helpers/eventually.js'
import { costs } from '../../helpers/metrics.js'
import { fresh, startService, type Service } from '../../helpers/service.js'
import { layWire } from '../../helpers/wire.js'

const forged = () => makeToken('mecha', newId(), deriveRoot(randomBytes(32).toString('hex'))).text

t.test('200: in the order of the keys, each as verify answers it', async (t) => {
  const service = await startService(t)
  const token = await service.token()
  const gateway = await service.gateway()
  const { plaintext_key: good } = await service.issue({ scopes: ['a'], metadata: { town: 'Zürich' } })
  const [disabled, revoked] = [await service.issue(), await service.issue()]
  await service.call('PATCH', `/v1/keys/${disabled.key.id}`, { token, body: { enabled: false } })
  await service.call('POST', `/v1/keys/${revoked.key.id}/revoke`, { token })
  const rival = await service.issue({ mecha: 'sales^rival' }, { org: 'rival' })
  const keys = [
    { key: good }, { key: disabled.plaintext_key }, { key: good, mecha: 'buyer^acmecorp' }, { key: forged() }, { key: `secret-token:${good}`, scopes: ['a'] }, { key: revoked.plaintext_key },
    { key: good, scopes: ['a', 'b'] }, { key: '' }, { key: good }, { key: rival.plaintext_key }, { key: gateway }, { key: 'x'.repeat(15_000) },
  ]
  const answer = await batch(service, gateway, keys)
  t.equal(answer.status, 200)
  t.same(answer.body.results.map(({ code }: any) => code ?? 'valid'), [
    'valid', 'disabled', 'mecha_mismatch', 'unknown', 'valid', 'revoked', 'insufficient_scope', 'malformed', 'valid', 'unknown', 'unknown', 'malformed',
  ])
  for (const [place, { key, ...demand }] of keys.entries()) t.same(answer.body.results[place], await service.verify(key, demand, gateway), `${place}`)
  t.match(answer.headers, { 'cache-control': 'no-store', 'content-type': 'application/json; charset=utf-8', 'x-request-id': /./, 'content-length': String(Buffer.byteLength(answer.text)) })
  t.same((await batch(service, gateway, [])).body, { results: [] })
  t.match(await service.call('GET', `/v1/keys/${disabled.key.id}`, { token }), { body: { first_used_at: null } }, 'what is refused is not used')
})

t.test('a hundred keys are one query, and one more that records first uses; known and forged ones none', async (t) => {
  const warnings: Error[] = []
  const onWarning = (warning: Error) => void warnings.push(warning)
  process.on('warning', onWarning)
  t.teardown(() => process.off('warning', onWarning))
  const first = await startService(t, { MAX_ACTIVE_KEYS_PER_MECHA: '100' })
  const gateway = await first.gateway()
  const keys = await issued(first, 95)
  const asked = [...keys, ...keys.slice(0, 5)].map((key) => ({ key }))
  await fresh(first)
  await first.verify('', {}, gateway)

  const spent = async (service: Service, expected: object, what: string) => {
    const before = await costs(service)
    const { body } = await batch(service, gateway, asked)
    const after = await costs(service)
    t.equal(body.results.filter(({ valid }: any) => valid).length, 100, what)
    t.same({ queries: after.queries - before.queries, argon2: after.argon2 - before.argon2 }, expected, what)
  }
  await spent(first, { queries: 2, argon2: 95 }, 'never seen and never used')
  await spent(first, { queries: 0, argon2: 0 }, 'from memory')
  const { rows } = await first.database.db.selectFrom('key_usage').innerJoin('keys', 'id', 'key_id').select('id').where('kind', '=', 'mecha').execute().then((found) => ({ rows: found }))
  t.equal(rows.length, 95, 'each of them has a first use')

  const second = await startService(t, { ROOT_SECRETS: first.config.ROOT_SECRETS!.join() }, first.database)
  await fresh(second)
  await second.verify('', {}, gateway)
  await spent(second, { queries: 1, argon2: 95 }, 'used before, and never seen here')

  const before = await costs(second)
  const { body } = await batch(second, gateway, Array.from({ length: 100 }, () => ({ key: forged() })))
  t.ok(body.results.every(({ code }: any) => code === 'unknown'))
  t.same(await costs(second), before, 'forged ones cost nothing')
  t.same(warnings, [])
})

t.test('400 and 413: what is no batch, and what is too large for one', async (t) => {
  const service = await startService(t)
  const gateway = await service.gateway()
  const { plaintext_key } = await service.issue()
  const send = (body: object) => service.call('POST', '/v1/verify/batch', { token: gateway, body })
  for (const [body, field] of [
    [{}, 'body.keys'], [{ keys: 'x' }, 'body.keys'], [{ keys: ['x'] }, 'body.keys.0'], [{ keys: [{ key: 'x' }, {}] }, 'body.keys.1.key'], [{ keys: [{ key: 'x', mecha: 'sales' }] }, 'body.keys.0.mecha'],
    [{ keys: Array(101).fill({ key: 'x' }) }, 'body.keys'], [{ keys: [], more: 1 }, 'body.more'], [{ keys: [{ key: 'x', more: 1 }] }, 'body.keys.0.more'],
  ] as const)
    t.match(await send(body), { status: 400, body: { errors: [{ field }] } }, JSON.stringify(body).slice(0, 60))
  const scopes = Array.from({ length: 50 }, (_, place) => String(place).padEnd(128, 'x'))
  const most = { keys: Array(100).fill({ key: plaintext_key, mecha: `${'m'.repeat(64)}^${'c'.repeat(64)}`, scopes }) }
  t.ok(JSON.stringify(most).length > 600_000)
  t.match(await send(most), { status: 200 }, 'a hundred keys with all that can be asked of them')
  t.match(await send({ keys: Array(100).fill({ key: 'x'.repeat(11_000) }) }), { status: 413, body: { code: 'body_too_large', detail: 'A body may have 1024 KiB at most here.' } })
  t.match(await service.call('POST', '/v1/verify', { token: gateway, body: { key: 'x'.repeat(17_000) } }), { status: 413, body: { detail: 'A body may have 16 KiB at most here.' } })
})

t.test('503: while the database is away, a batch with a key that is not in memory is not answered at all', async (t) => {
  const database = await createDatabase(t)
  const wire = await layWire(t, database.runtime)
  const service = await startService(t, { DATABASE_DIRECT_URL: database.runtime }, { ...database, runtime: wire.through(database.runtime) })
  const gateway = await service.gateway()
  const [known, unseen] = await issued(service, 2)
  await fresh(service)
  t.match(await service.verify(known!, {}, gateway), { valid: true })
  wire.cut()
  const mixed = [{ key: known }, { key: unseen }, { key: '' }]
  t.match(await batch(service, gateway, mixed), { status: 503, body: { code: 'database_unavailable' } })
  t.match((await batch(service, gateway, [{ key: known }, { key: '' }])).body, { results: [{ valid: true }, { code: 'malformed' }] }, 'from memory')
  wire.restore()
  t.match((await batch(service, gateway, mixed)).body, { results: [{ valid: true }, { valid: true }, { code: 'malformed' }] })
})

t.test('503: more than can be done says so, and what was verified is known the next time', async (t) => {
  const service = await startService(t, { HASH_PROFILE: 'owasp', QUEUE_SIZE: '8', MAX_ACTIVE_KEYS_PER_MECHA: '100' })
  const gateway = await service.gateway()
  const asked = (await issued(service, 40)).map((key) => ({ key }))
  await fresh(service)
  await service.verify('', {}, gateway)
  t.match(await batch(service, gateway, asked), { status: 503, headers: { 'retry-after': '1' }, body: { code: 'overloaded' } })
  const isAnswered = async () => (await batch(service, gateway, asked)).body.results?.every(({ valid }: any) => valid) === true
  await eventually(isAnswered)
})

t.test('a key that somebody is changing is waited for, and holds up neither its changer nor the first use of the others', async (t) => {
  const service = await startService(t)
  const gateway = await service.gateway()
  const keys = await issued(service, 3)
  await fresh(service)
  await service.verify('', {}, gateway)
  const ids = (await service.database.db.selectFrom('keys').select('id').where('kind', '=', 'mecha').orderBy('id').execute()).map(({ id }) => id)
  const admin = await connect(t, service)
  await admin.query('BEGIN')
  await admin.query('UPDATE keys SET enabled = false WHERE id = $1', [ids[1]])
  const answer = batch(service, gateway, keys.map((key) => ({ key })))
  const isWaiting = async () => (await (await watcher).query("SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'")).rowCount === 1
  const watcher = connect(t, service)
  await eventually(isWaiting)
  // Whoever changes several keys takes them in any order: here are those that come before and after.
  for (const id of [ids[2], ids[0]]) await admin.query('SELECT FROM keys WHERE id = $1 FOR UPDATE', [id])
  await admin.query('COMMIT')
  t.same((await answer).body.results.map(({ code }: any) => code ?? 'valid'), ['valid', 'disabled', 'valid'])
})

t.test('a revocation that commits while a batch is under way counts', async (t) => {
  const service = await startService(t)
  const gateway = await service.gateway()
  const keys = await issued(service, 2)
  await fresh(service)
  await service.verify('', {}, gateway)
  const [first] = await service.database.db.selectFrom('keys').select('id').where('kind', '=', 'mecha').orderBy('id').execute()
  const admin = await connect(t, service)
  await admin.query('BEGIN')
  await admin.query("UPDATE keys SET revoked_at = now(), revoked_by = 'test' WHERE id = $1", [first!.id])
  const answer = batch(service, gateway, [...keys, ...keys].map((key) => ({ key })))
  const watcher = await connect(t, service)
  const isWaiting = async () => (await watcher.query("SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'")).rowCount! > 0
  await eventually(isWaiting)
  await admin.query('COMMIT')
  t.same((await answer).body.results.map(({ code }: any) => code ?? 'valid'), ['revoked', 'valid', 'revoked', 'valid'])
})

function batch(service: Service, token: string, keys: object[]) {
  return service.call('POST', '/v1/verify/batch', { token, body: { keys } })
}

/** Plaintexts of new keys, in the order of their ids. */
async function issued(service: Service, count: number): Promise<string[]> {
  const keys: string[] = []
  while (keys.length < count) keys.push((await service.issue()).plaintext_key)
  return keys
}

async function connect(t: Test, { database }: Service): Promise<Client> {
  const client = new Client({ connectionString: database.owner })
  await client.connect()
  t.teardown(() => client.end())
  return client
}
