import { randomBytes } from 'node:crypto'
import { Client } from 'pg'
import t, { type Test } from 'tap'
import { hashSecret } from '../../../src/credentials/hash.js'
import { newId } from '../../../src/credentials/id.js'
import { deriveRoot, rootsOf } from '../../../src/credentials/roots.js'
import { makeToken, parseToken } from '../../../src/credentials/token.js'
import { applied, createDatabase } from '../../helpers/database.js'
import { eventually } from '../../helpers/eventually.js'
import { costs } from '../../helpers/metrics.js'
import { exchanged, introspect } from '../../helpers/oauth.js'
import { isSameAnswer } from '../../helpers/refusals.js'
import { fresh, startService, type Answer, type Service } from '../../helpers/service.js'
import { layWire } from '../../helpers/wire.js'

const OFTEN = { REVOKE_TOKEN_RATE: '1000' }
const forged = () => makeToken('mecha', newId(), deriveRoot(randomBytes(32).toString('hex'))).text

t.test('a key is ended by who presents it, here at once and everywhere by the feed, and the audit trail says so', async (t) => {
  const service = await startService(t)
  const token = await service.token()
  const { key, plaintext_key } = await service.issue()
  const unseen = await service.issue()
  const other = await startService(t, { ROOT_SECRETS: service.config.ROOT_SECRETS!.join() }, service.database)
  const gateway = await service.gateway()
  for (const one of [service, other]) t.match(await one.verify(plaintext_key, {}, gateway), { valid: true })

  const answer = await revoke(service, { token: plaintext_key, token_type_hint: 'access_token' }, { headers: { 'x-request-id': 'found-it' }, remoteAddress: '203.0.113.7' })
  t.match(answer, { status: 200, body: {}, headers: { 'cache-control': 'no-store', 'x-request-id': 'found-it' } })
  t.same(await service.verify(plaintext_key, {}, gateway), { valid: false, code: 'revoked' })
  await applied(service.database)
  t.same(await other.verify(plaintext_key, {}, gateway), { valid: false, code: 'revoked' })
  t.match((await service.call('GET', `/v1/keys/${key.id}`, { token })).body, { status: 'revoked', revoked_by: 'holder', revoke_reason: null, revoked_at: /Z$/ })
  const { events } = (await service.call('GET', `/v1/events?key_id=${key.id}&type=key.revoked`, { token })).body
  t.match(events, [{ actor: 'holder', mecha: 'sales^acmecorp', request_id: 'found-it', address: '203.0.113.7', data: { reason: null } }])
  t.equal(events.length, 1)

  t.match(await revoke(service, { token: `secret-token:${unseen.plaintext_key}` }), { status: 200 }, 'a key that this process had never seen')
  t.match((await service.call('GET', `/v1/keys/${unseen.key.id}`, { token })).body, { status: 'revoked', first_used_at: null }, 'and to end it is no use of it')
})

t.test('a disabled key, an expired one and a gateway credential are ended too', async (t) => {
  const service = await startService(t)
  const token = await service.token()
  const [disabled, expired] = [await service.issue(), await service.issue()]
  await service.call('PATCH', `/v1/keys/${disabled.key.id}`, { token, body: { enabled: false } })
  await service.database.db.updateTable('keys').set({ expires_at: new Date() }).where('id', '=', parseToken(expired.plaintext_key)!.id).execute()
  const gateway = await service.gateway()
  t.equal((await service.call('POST', '/v1/verify', { token: gateway, body: { key: '' } })).status, 200)
  for (const held of [disabled.plaintext_key, expired.plaintext_key, gateway]) t.equal((await revoke(service, { token: held })).status, 200)
  for (const { key } of [disabled, expired]) t.match((await service.call('GET', `/v1/keys/${key.id}`, { token })).body, { status: 'revoked', revoked_by: 'holder' })
  t.equal((await service.call('POST', '/v1/verify', { token: gateway, body: { key: '' } })).status, 401)
  t.match((await service.call('GET', '/v1/gateways', { token })).body.gateways, [{ status: 'revoked', revoked_by: 'holder' }])
  t.match((await service.call('GET', '/v1/events?type=gateway.revoked', { token })).body.events, [{ actor: 'holder', mecha: null }])
})

t.test('the answer is the same to the byte whatever the token is, and no sooner', async (t) => {
  const service = await startService(t, OFTEN)
  const { plaintext_key } = await service.issue()
  const replaced = await service.issue()
  const [root] = rootsOf(service.config.ROOT_SECRETS!)
  const changed = plaintext_key.slice(0, -1) + (plaintext_key.endsWith('0') ? '1' : '0')
  const tokens = { good: plaintext_key, revoked: plaintext_key, forged: forged(), 'never issued': makeToken('mecha', newId(), root).text, malformed: 'x', empty: '', long: 'x'.repeat(10_000), mistyped: changed, another: replaced.plaintext_key, 'no gateway': makeToken('mgw', newId(), root).text }
  let first: Answer | undefined
  for (const [what, token] of Object.entries(tokens)) {
    const start = performance.now()
    const answer = await revoke(service, { token })
    // Timers of Node.js may be a millisecond early.
    t.ok(performance.now() - start >= 98, `${what}: ${performance.now() - start} ms`)
    first ??= answer
    t.match(answer, { status: 200, text: '{}' })
    isSameAnswer(t, answer, first, what)
  }
})

t.test('400: what has the form of a JWT is not said to be revoked, whatever it is, and nothing of it is looked at', async (t) => {
  const service = await startService(t, OFTEN)
  const { plaintext_key } = await service.issue()
  const gateway = await service.gateway()
  const jwt = await exchanged(service, plaintext_key)
  t.match(await introspect(service, gateway, jwt), { active: true })
  const before = await costs(service)
  const answer = await revoke(service, { token: jwt, token_type_hint: 'access_token' })
  t.match(answer, {
    status: 400, body: { error: 'unsupported_token_type', code: 'unsupported_token_type', error_description: /revoke the key/i },
    headers: { 'content-type': /^application\/json/, 'cache-control': 'no-store' },
  })
  for (const other of [`${jwt}x`, 'a.b.c', '..', await service.token()]) isSameAnswer(t, await revoke(service, { token: other }), answer, 'by its form alone')
  t.same(await costs(service), before)
  t.match(await introspect(service, gateway, jwt), { active: true }, 'it is as good as before, and nobody was told otherwise')
  t.equal((await revoke(service, { token: plaintext_key })).status, 200)
  t.same(await introspect(service, gateway, jwt), { active: false }, 'its key ends it')
})

t.test('what was never issued here costs no query and no argon2, and a key that is known no argon2', async (t) => {
  const service = await startService(t, OFTEN)
  const { plaintext_key } = await service.issue()
  await service.verify(plaintext_key)
  await fresh(service)
  t.match(await service.verify(plaintext_key), { valid: true })
  const before = await costs(service)
  for (const token of [forged(), forged(), 'x', '']) t.equal((await revoke(service, { token })).status, 200)
  t.same(await costs(service), before)
  await revoke(service, { token: plaintext_key })
  t.same(await costs(service), { queries: before.queries + 1, argon2: before.argon2 })
  await applied(service.database)
  await revoke(service, { token: plaintext_key })
  const after = await costs(service)
  for (let i = 0; i < 5; i++) await revoke(service, { token: plaintext_key })
  t.same(await costs(service), after, 'nor does one that is over and known to be so')
  t.match(await service.verify(plaintext_key), { code: 'revoked' })
})

t.test('429: too many calls of one address, whatever the token is, and only of that one', async (t) => {
  const service = await startService(t, { REVOKE_TOKEN_RATE: '3' })
  const { plaintext_key } = await service.issue()
  const from = (remoteAddress: string, token: string) => revoke(service, { token }, { remoteAddress })
  for (let i = 0; i < 3; i++) t.equal((await from('203.0.113.7', forged())).status, 200)
  const refused = await from('203.0.113.7', forged())
  t.match(refused, { status: 429, body: { error: 'temporarily_unavailable', code: 'rate_limited' }, headers: { 'content-type': /^application\/json/, 'retry-after': /^([1-9]|[1-5]\d|60)$/ } })
  const genuine = await from('203.0.113.7', plaintext_key)
  t.same([genuine.status, genuine.text, Object.keys(genuine.headers)], [refused.status, refused.text, Object.keys(refused.headers)], 'it says nothing of the token')
  t.match(await service.verify(plaintext_key), { valid: true }, 'which is as it was')
  for (let i = 0; i < 3; i++) await from(`2001:db8::${i}`, forged())
  t.equal((await from('2001:db8::ffff', forged())).status, 429, 'the addresses of one network of IPv6 are one')
  t.equal((await from('2001:db8:0:1::1', plaintext_key)).status, 200, 'from elsewhere it goes on')
  t.match(await service.verify(plaintext_key), { code: 'revoked' })
})

t.test('503: while the database is away nothing is said to be revoked, and trying again ends it', async (t) => {
  const database = await createDatabase(t)
  const wire = await layWire(t, database.runtime)
  const service = await startService(t, { DATABASE_DIRECT_URL: database.runtime }, { ...database, runtime: wire.through(database.runtime) })
  const [known, unseen] = [await service.issue(), await service.issue()]
  await fresh(service)
  t.match(await service.verify(known.plaintext_key), { valid: true })
  wire.cut()
  for (const { plaintext_key } of [known, unseen])
    t.match(await revoke(service, { token: plaintext_key }), { status: 503, body: { code: 'database_unavailable' }, headers: { 'retry-after': '1' } })
  wire.restore()
  t.match(await service.verify(known.plaintext_key), { valid: true }, 'it was not')
  for (const { plaintext_key } of [known, unseen]) {
    t.equal((await revoke(service, { token: plaintext_key })).status, 200)
    t.match(await service.verify(plaintext_key), { code: 'revoked' })
  }
})

t.test('many at once, and an operator among them, are one revocation', async (t) => {
  const service = await startService(t, OFTEN)
  const token = await service.token()
  const { key, plaintext_key } = await service.issue()
  const answers = await Promise.all([
    ...Array.from({ length: 10 }, () => revoke(service, { token: plaintext_key })),
    service.call('POST', `/v1/keys/${key.id}/revoke`, { token }),
    service.call('POST', '/v1/mechas/sales%5Eacmecorp/revoke-keys', { token }),
  ])
  for (const { status } of answers) t.equal(status, 200)
  t.equal((await service.call('GET', '/v1/events?type=key.revoked', { token })).body.events.length, 1)
})

t.test('a key whose hash was renewed meanwhile is proved again', async (t) => {
  const database = await createDatabase(t)
  const feed = await layWire(t, database.runtime)
  const service = await startService(t, { DATABASE_DIRECT_URL: feed.through(database.runtime), REVOCATION_MAX_STALENESS: '60s' }, database)
  const { plaintext_key } = await service.issue()
  await fresh(service)
  t.match(await service.verify(plaintext_key), { valid: true })
  // From here on this process does not hear what changes, and takes what it holds for what is.
  feed.silence()
  const { id, secret } = parseToken(plaintext_key)!
  const hash = await hashSecret({ id, subject: 'sales^acmecorp', secret }, { root: rootsOf(service.config.ROOT_SECRETS!)[0], version: 2 }, 'owasp')
  await database.db.updateTable('keys').set({ hash }).where('id', '=', id).execute()
  t.equal((await revoke(service, { token: plaintext_key })).status, 200)
  t.match(await database.db.selectFrom('keys').select('revoked_by').where('id', '=', id).executeTakeFirst(), { revoked_by: 'holder' })
})

t.test('a secret that was replaced ends nothing', async (t) => {
  const service = await startService(t)
  const token = await service.token()
  const issue = () => service.call('POST', '/v1/keys', { token, body: { mecha: 'sales^acmecorp' }, headers: { 'idempotency-key': 'once' } })
  const [earlier, later] = [(await issue()).body, (await issue()).body]
  t.equal((await revoke(service, { token: earlier.plaintext_key })).status, 200)
  t.match(await service.verify(later.plaintext_key), { valid: true })
})

t.test('its event waits for its organization\'s, so that positions are in the order of commits', async (t) => {
  const service = await startService(t)
  const token = await service.token()
  const { plaintext_key } = await service.issue()
  const admin = await connect(t, service)
  await admin.query('BEGIN')
  await admin.query("SELECT pg_advisory_xact_lock(hashtextextended('acme', 20826))")
  const { rows } = await admin.query("INSERT INTO events (at, type, org_id, key_id, kind, mecha, actor, request_id, address) SELECT now(), 'key.updated', org_id, id, kind, mecha, 'test', 'x', 'x' FROM keys LIMIT 1 RETURNING position")
  const answer = revoke(service, { token: plaintext_key })
  const watcher = await connect(t, service)
  const isWaiting = async () => (await watcher.query("SELECT FROM pg_locks JOIN pg_database d ON d.oid = database WHERE datname = current_database() AND locktype = 'advisory' AND NOT granted")).rowCount === 1
  await eventually(isWaiting)
  await admin.query('COMMIT')
  t.equal((await answer).status, 200)
  t.match((await service.call('GET', `/v1/events?after=${rows[0].position}`, { token })).body.events, [{ type: 'key.revoked', actor: 'holder' }])
})

t.test('400, 413 and 415: what is no form with a token', async (t) => {
  const service = await startService(t, OFTEN)
  const { plaintext_key } = await service.issue()
  for (const fields of [[], [['token_type_hint', 'access_token']], [['token', plaintext_key], ['token', plaintext_key]]]) {
    const answer = await revoke(service, new URLSearchParams(fields as [string, string][]))
    t.match(answer, { status: 400, body: { error: 'invalid_request', code: 'invalid_request', error_description: /body\.token/ } })
    t.notOk(answer.text.includes(plaintext_key))
  }
  t.match(await service.call('POST', '/v1/revoke-token', { body: { token: plaintext_key } }), { status: 415, body: { code: 'unsupported_media_type', detail: 'Send application/x-www-form-urlencoded.' } })
  t.match(await service.call('POST', `/v1/revoke-token?token=${plaintext_key}`), { status: 400 })
  t.match(await revoke(service, { token: 'x'.repeat(17_000) }), { status: 413, body: { code: 'body_too_large' } })
  t.match(await service.verify(plaintext_key), { valid: true })
  t.equal((await revoke(service, { token: plaintext_key, client_id: 'anybody', more: 'x', ['__proto__']: 'x' })).status, 200, 'what is not known is ignored')
  t.match(await service.verify(plaintext_key), { code: 'revoked' })
})

async function revoke({ app }: Service, form: Record<string, string> | URLSearchParams, options: { headers?: Record<string, string>; remoteAddress?: string } = {}): Promise<Answer> {
  const { statusCode: status, headers, body: text } = await app.inject({
    method: 'POST', url: '/v1/revoke-token', ...options,
    headers: { 'content-type': 'application/x-www-form-urlencoded', ...options.headers },
    payload: new URLSearchParams(form).toString(),
  })
  return { status, headers, text, body: JSON.parse(text) }
}

async function connect(t: Test, { database }: Service): Promise<Client> {
  const client = new Client({ connectionString: database.owner })
  await client.connect()
  t.teardown(() => client.end())
  return client
}
