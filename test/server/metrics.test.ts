/** What an operator sees: metrics, and what the log says of the feed and of who was refused. */

import { randomBytes } from 'node:crypto'
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { sql } from 'kysely'
import t from 'tap'
import { PACKAGE_ROOT, VERSION } from '../../src/package-root.js'
import { createDatabase } from '../helpers/database.js'
import { eventually } from '../helpers/eventually.js'
import { fresh, startService, type Service } from '../helpers/service.js'
import { layWire } from '../helpers/wire.js'

t.test('every metric is in the table of the documentation with its type and labels, and every one of the table is there', async (t) => {
  const service = await startService(t)
  const { key } = await service.issue()
  await service.call('POST', `/v1/keys/${key.id}/revoke`, { token: await service.token(), headers: { prefer: 'wait=10' } })
  await service.verify(key.id)
  await service.call('GET', '/nowhere')
  await eventually(async () => (await metricsOf(service)).has('mecha_keys_keys{status="revoked"}'))
  const { text } = await service.call('GET', '/metrics')
  const labelsOf = (name: string) => {
    const sample = new RegExp(`^${name}(?:_bucket|_count)?\\{([^}]*)\\} `, 'm').exec(text)?.[1] ?? ''
    return [...sample.matchAll(/(\w+)="/g)].map(([, label]) => label).filter((label) => label !== 'le').sort().join()
  }
  const registered = [...text.matchAll(/^# TYPE (mecha_keys_\w+) (\w+)$/gm)].map(([, name, type]) => [name, type, labelsOf(name!)].join(' '))
  const [, section = ''] = readFileSync(join(PACKAGE_ROOT, 'docs', 'deployment.md'), 'utf8').split('\n## Metrics and alerts\n')
  const table = [...section.split('\n## ')[0]!.matchAll(/^\| `(mecha_keys_\w+)` \| (\w+) \|([^|]*)\|/gm)].map(([, name, type, labels]) => [name, type, labels!.replaceAll(/[` ]/g, '').split(',').sort().join()].join(' '))
  t.same(table.sort(), registered.sort())
})

t.test('what is counted is counted, and asks nothing of the hot path but an addition', async (t) => {
  const service = await startService(t, { USAGE_FLUSH_INTERVAL: '10m' })
  const [one, other] = [await service.issue(), await service.issue()]
  const token = await service.token()
  await fresh(service)
  const before = await metricsOf(service)
  await service.verify(one.plaintext_key)
  const cold = await metricsOf(service)
  for (let i = 0; i < 5; i++) await service.verify(one.plaintext_key)
  const hot = await metricsOf(service)
  const grew = (name: string, from: Map<string, number>, to: Map<string, number>) => (to.get(name) ?? 0) - (from.get(name) ?? 0)
  t.equal(grew('mecha_keys_cache_lookups_total{result="miss"}', before, cold), 2, 'the key and the gateway that asked')
  t.equal(grew('mecha_keys_cache_lookups_total{result="hit"}', cold, hot), 10)
  t.equal(grew('mecha_keys_cache_lookups_total{result="miss"}', cold, hot), 0)
  t.ok(hot.get('mecha_keys_usage_pending')! >= 1)

  await service.call('POST', `/v1/keys/${other.key.id}/revoke`, { token, headers: { prefer: 'wait=10' } })
  await service.call('GET', '/v1/keys', { token: 'none' })
  await service.call('GET', '/nowhere')
  await service.call('GET', '/v1/authz', { headers: { 'x-mecha-key': one.plaintext_key } })
  const after = await metricsOf(service)
  t.equal(after.get('mecha_keys_refusals_total{code="unauthenticated"}'), 1)
  t.equal(after.get('mecha_keys_refusals_total{code="gateway_unauthenticated"}'), 1)
  t.equal(after.get('mecha_keys_refusals_total{code="route_not_found"}'), 1)
  t.equal(after.get('mecha_keys_propagation_seconds_count{complete="true"}'), 1)
  t.equal(after.get(`mecha_keys_build_info{version="${VERSION}",node="${process.version}"}`), 1)
  t.ok(after.get('mecha_keys_feed_lag_seconds')! < 10)
  t.equal(after.get('mecha_keys_feed_resets_total'), 1, 'the first word of the feed')
  t.equal(after.get('mecha_keys_feed_history_changes_total'), 0)
  for (const plane of ['control', 'runtime']) {
    t.ok(after.get(`mecha_keys_database_connections{plane="${plane}",state="idle"}`)! >= 1, plane)
    t.equal(after.get(`mecha_keys_database_waiting{plane="${plane}"}`), 0)
  }
})

t.test('keys are counted by status, to the key while they are few', async (t) => {
  const service = await startService(t)
  const token = await service.token()
  const issued = []
  for (let i = 0; i < 6; i++) issued.push(await service.issue())
  for (const { key } of issued.slice(0, 3)) await service.call('POST', `/v1/keys/${key.id}/revoke`, { token })
  await service.call('PATCH', `/v1/keys/${issued[3]!.key.id}`, { token, body: { enabled: false } })
  // The first look finds nothing yet, and has it counted.
  await service.call('GET', '/metrics')
  await eventually(async () => (await metricsOf(service)).has('mecha_keys_keys{status="active"}'))
  const found = await metricsOf(service)
  t.same(['active', 'disabled', 'expired', 'revoked'].map((status) => found.get(`mecha_keys_keys{status="${status}"}`)), [2, 1, 0, 3])
  t.ok(found.get('mecha_keys_signing_key_age_seconds')! < 240)
  await service.issue()
  await service.call('GET', '/metrics')
  t.equal((await metricsOf(service)).get('mecha_keys_keys{status="active"}'), 2, 'not more often than once a minute')
})

t.test('of many keys a sample is counted', async (t) => {
  const database = await createDatabase(t)
  const before = await startService(t, {}, database)
  await before.issue()
  await database.db.transaction().execute(async (trx) => {
    await sql`ALTER TABLE keys DISABLE TRIGGER ALL`.execute(trx)
    await sql`
      INSERT INTO keys (id, kind, org_id, mecha, metadata, hash, tag_root, pepper_root, created_at, created_by, enabled)
      SELECT uuidv7(), kind, org_id, mecha, jsonb_build_object('note', repeat('x', 1000)), hash, tag_root, pepper_root, created_at, created_by, n % 4 > 0
      FROM keys, generate_series(1, 40000) n WHERE kind = 'mecha'`.execute(trx)
    await sql`ALTER TABLE keys ENABLE TRIGGER ALL`.execute(trx)
  })
  const { rows } = await sql<{ blocks: number }>`SELECT (pg_relation_size('keys') / 8192)::int AS blocks`.execute(database.db)
  t.ok(rows[0]!.blocks > 4000, `${rows[0]!.blocks} blocks are more than are looked at`)
  const service = await startService(t, { ROOT_SECRETS: before.config.ROOT_SECRETS!.join() }, database)
  await eventually(async () => (await metricsOf(service)).has('mecha_keys_keys{status="active"}'))
  const found = await metricsOf(service)
  for (const [status, count] of [['active', 30_001], ['disabled', 10_000]] as const) {
    const value = found.get(`mecha_keys_keys{status="${status}"}`)!
    t.ok(Math.abs(value - count) < count / 5, `${value} ${status} of ${count}`)
  }
})

t.test('that the feed was lost and found again, and what was dropped for it and why, are lines in the log', async (t) => {
  const database = await createDatabase(t)
  const wire = await layWire(t, database.runtime)
  const service = await startService(t, { DATABASE_DIRECT_URL: wire.through(database.runtime), REVOCATION_MAX_STALENESS: '1s' }, database)
  const { plaintext_key } = await service.issue()
  await service.verify(plaintext_key)
  await fresh(service)
  t.notMatch(service.logs(), /found again|asked about anew/, 'nothing is dropped at the start')
  wire.cut()
  await eventually(async () => (await metricsOf(service)).get('mecha_keys_feed_losses_total')! > 0)
  await eventually(async () => (await service.call('GET', '/readyz')).status === 503)
  t.match((await service.call('GET', '/readyz')).body, { ready: false, checks: { database_runtime: 'ok', feed: /^the change feed has no word from the database \([^)]+\): does DATABASE_DIRECT_URL lead straight to it\?$/ } })
  wire.restore()
  await eventually(async () => service.logs().includes('found again'))
  const lines = linesOf(service)
  t.match(lines.find(({ msg }) => msg === 'the change feed was lost; connecting again'), { level: 40 })
  t.match(lines.find(({ msg }) => msg === 'the change feed was found again'), { level: 30, lost_ms: Number })
  t.match(lines.find(({ msg }) => /asked about anew/.test(msg)), { level: 30, why: 'reconnected', keys: 2, streams: 0 })
  const found = await metricsOf(service)
  t.equal(found.get('mecha_keys_feed_resets_total'), 2)
  t.equal(found.get('mecha_keys_feed_history_changes_total'), 0)
  await sql`DELETE FROM changes`.execute(database.db)
  await eventually(async () => linesOf(service).some(({ why }) => why === 'every_key_changed'))
})

t.test('the line of a refused request says why, and who was refused, and no secret', async (t) => {
  const service = await startService(t)
  const { key, plaintext_key } = await service.issue()
  const token = await service.token()
  const created = await service.call('POST', '/v1/gateways', { token, body: { name: 'edge' } })
  const gateway: string = created.body.plaintext_key
  const id: string = created.body.gateway.id
  const nonce = { key_id: key.id, nonce: randomBytes(16).toString('hex'), expires_at: new Date(Date.now() + 60_000).toISOString() }
  const lineOf = async (what: Promise<{ headers: Record<string, unknown> }>) => {
    const { headers } = await what
    let line: Line | undefined
    await eventually(async () => (line = linesOf(service).find(({ request_id, msg }) => request_id === headers['x-request-id'] && msg === 'request')) !== undefined)
    return line!
  }
  const reader = await service.token({ scopes: ['keys:read'], subject: 'bob' })
  t.match(await lineOf(service.call('POST', `/v1/keys/${key.id}/revoke`, { token: reader })), { status: 403, code: 'insufficient_scope', reason: 'The token lacks the scope keys:revoke.', actor: 'builtin:bob' })
  t.match(await lineOf(service.call('GET', '/v1/keys', { token: plaintext_key })), { status: 401, code: 'unauthenticated', actor: undefined, gateway: undefined })
  await service.call('POST', '/v1/nonces', { token: gateway, body: nonce })
  t.match(await lineOf(service.call('POST', '/v1/nonces', { token: gateway, body: nonce })), { status: 409, code: 'nonce_reused', gateway: id })
  const headers = { 'x-gateway-authorization': `Bearer ${gateway}`, 'x-mecha-key': plaintext_key }
  await service.call('POST', `/v1/keys/${key.id}/revoke`, { token, headers: { prefer: 'wait=10' } })
  t.match(await lineOf(service.call('GET', '/v1/authz', { headers })), { status: 401, code: 'unauthenticated', reason: 'The key is revoked.', gateway: id })
  t.match(await lineOf(service.call('POST', '/v1/introspect', { body: 'token=', headers: { authorization: `Bearer ${gateway}`, 'content-type': 'application/x-www-form-urlencoded' } })), { status: 400, code: 'invalid_request', gateway: id })
  t.match(await lineOf(service.call('GET', `/${plaintext_key}`)), { status: 404, code: 'route_not_found' })
  const verified = await lineOf(service.call('POST', '/v1/verify', { token: gateway, body: { key: plaintext_key } }))
  t.match(verified, { status: 200, code: undefined, reason: undefined }, 'an answer is no refusal, whatever it says: it is counted')
  for (const secret of [plaintext_key, gateway, token, reader]) t.notOk(service.logs().includes(secret))
})

interface Line {
  readonly msg: string
  readonly level: number
  readonly request_id?: string
  readonly why?: string
}

function linesOf(service: Service): Line[] {
  return service.logs().split('\n').filter(Boolean).map((line) => JSON.parse(line) as Line)
}

/** Each sample of `/metrics`, by its name and labels. */
async function metricsOf(service: Service): Promise<Map<string, number>> {
  const { text } = await service.call('GET', '/metrics')
  return new Map([...text.matchAll(/^(mecha_keys_\S+) (\S+)$/gm)].map(([, name, value]) => [name!, value === '+Inf' ? Infinity : Number(value)]))
}
