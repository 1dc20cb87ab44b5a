/** The first rule: a plaintext exists once, in the answer that reveals it. */

import { Writable } from 'node:stream'
import { sql } from 'kysely'
import t from 'tap'
import { rootsOf } from '../../src/credentials/roots.js'
import { openSigningKey } from '../../src/credentials/signing-key.js'
import { createLogger } from '../../src/server/request-log.js'
import { introspect, exchange, sendForm } from '../helpers/oauth.js'
import { found, processSecrets } from '../helpers/secrets.js'
import { startService, type Answer, type CallOptions } from '../helpers/service.js'

t.test('after a whole life, no plaintext and no token is in a log, the database, the metrics, an event or an error', async (t) => {
  const service = await startService(t, { LOG_LEVEL: 'trace' })
  const token = await service.token()
  const captured: Answer[] = []
  const call = async (method: 'GET' | 'POST' | 'PATCH', url: string, options: CallOptions = {}) => {
    const answer = await service.call(method, url, { token, ...options })
    captured.push(answer)
    return answer
  }
  const revealed: { plaintext_key: string; key: { id: string } }[] = []
  const reveal = async (url: string, body: object, headers = {}) => {
    const { body: answer } = await service.call('POST', url, { token, body, headers })
    revealed.push(answer)
    return answer
  }

  const once = { 'idempotency-key': 'once' }
  const first = await reveal('/v1/keys', { mecha: 'sales^acmecorp' }, once)
  await reveal('/v1/keys', { mecha: 'sales^acmecorp' }, once)
  const second = revealed[1]!
  const gateway = (await reveal('/v1/gateways', { name: 'edge' })).plaintext_key
  const verify = (key: string) => call('POST', '/v1/verify', { token: gateway, body: { key } })
  await verify(second.plaintext_key)
  const jwt: string = (await exchange(service, second.plaintext_key)).body.access_token
  captured.push(await service.call('GET', '/.well-known/jwks.json'), await service.call('GET', '/.well-known/token-status'))
  for (const one of [second.plaintext_key, jwt]) t.match(await introspect(service, gateway, one), { active: true })
  captured.push(await sendForm(service, '/v1/introspect', { token: jwt }, { authorization: `Bearer ${gateway}`, accept: 'application/token-introspection+jwt' }))
  await call('POST', '/v1/verify/batch', { token: gateway, body: { keys: [{ key: second.plaintext_key }, { key: second.plaintext_key, mecha: 'a^b' }] } })
  await call('POST', '/v1/nonces', { token: gateway, body: { key_id: first.key.id, nonce: 'a-nonce-of-a-signed-request', expires_at: new Date(Date.now() + 60_000).toISOString() } })
  await call('POST', '/v1/usage', { token: gateway, body: { uses: [{ key_id: first.key.id, used_at: new Date().toISOString() }] } })
  const third = await reveal(`/v1/keys/${first.key.id}/rotate`, { overlap_seconds: 60 })
  await verify(third.plaintext_key)
  await call('GET', '/v1/keys')
  await call('PATCH', `/v1/keys/${third.key.id}`, { body: { name: 'x', enabled: false } })
  await verify(third.plaintext_key)
  await call('POST', `/v1/keys/${third.key.id}/revoke`, { body: { reason: 'done' } })
  await verify(third.plaintext_key)

  // And everything that can go wrong with a key in hand.
  const key = second.plaintext_key
  const asJson = { 'content-type': 'application/json' }
  await call('POST', '/v1/verify', { token: gateway, body: { key: { [key]: key } } })
  await call('POST', '/v1/verify', { token: gateway, body: { key, [key]: 1 } })
  await call('POST', '/v1/verify', { token: gateway, body: `{"key":"${key}"`, headers: asJson })
  await call('POST', '/v1/verify', { token: gateway, body: `{"key":"${key}${' '.repeat(17_000)}"}`, headers: asJson })
  await call('POST', '/v1/verify', { token: gateway, body: key, headers: { 'content-type': key } })
  await call('POST', '/v1/verify', { token: key, body: { key, mecha: key, scopes: [key] } })
  for (const headers of [{ 'x-mecha-key': key }, { authorization: `Bearer ${key}` }, { 'x-mecha-key': key, authorization: `Bearer ${key}` }, { 'x-mecha-key': third.plaintext_key }])
    for (const url of ['/v1/authz', `/v1/authz/${key}?scope=${key}`, `/v1/authz?mecha=${key}&request=${key}`]) await call('GET', url, { headers: { ...headers, 'x-gateway-authorization': `Bearer ${gateway}` } })
  await call('POST', '/v1/verify', { token: gateway, body: { key, mecha: key, scopes: [key] }, headers: { 'x-request-id': key, 'x-mecha-key': key, cookie: key } })
  for (const url of ['/v1/introspect', '/v1/token'])
    for (const form of [{ token: [key, key] }, { [key]: key }, { grant_type: key }, { token: jwt, subject_token: key }, { subject_token: jwt, grant_type: 'urn:ietf:params:oauth:grant-type:token-exchange', subject_token_type: key }, { token: key + ' '.repeat(17_000) }])
      captured.push(await sendForm(service, url, form, { authorization: `Bearer ${gateway}`, accept: key }), await sendForm(service, url, form, { authorization: `Basic ${key}` }))
  for (const more of [{ scope: key }, { audience: [key, `${key} `] }, { resource: key }, { requested_token_type: key }, { actor_token: key }]) captured.push(await exchange(service, key, more))
  await call('POST', '/v1/verify/batch', { token: gateway, body: { keys: [{ key }, { key, mecha: key }, { [key]: key }] } })
  await call('POST', '/v1/nonces', { token: gateway, body: { key_id: key, nonce: key, expires_at: key } })
  await call('POST', '/v1/usage', { token: gateway, body: { uses: [{ key_id: key, used_at: key }] } })
  await call('POST', '/v1/nonces', { token: gateway, body: { key_id: first.key.id, nonce: key, expires_at: new Date(Date.now() + 60_000).toISOString() } })
  const asForm = { 'content-type': 'application/x-www-form-urlencoded' }
  for (const body of [`token=${key}&token=${key}`, `${key}=${key}`, `token_type_hint=${key}`, `token=${key}${'+'.repeat(17_000)}`]) await call('POST', '/v1/revoke-token', { body, headers: asForm })
  await call('POST', '/v1/revoke-token', { body: { token: key } })
  await call('POST', '/v1/keys', { body: { mecha: key, name: key, scopes: [key], expires_at: key, metadata: { [key]: key } } })
  await call('POST', '/v1/keys', { body: { mecha: 'a^b', metadata: { note: key } }, headers: { 'idempotency-key': key } })
  await call('POST', '/v1/keys', { body: { mecha: 'a^b' }, headers: { 'idempotency-key': key } })
  revealed.push(captured.pop()!.body)
  await call('GET', `/v1/keys/${key}?mecha=${key}&${key}=${key}`)
  await call('GET', `/${key}`)
  await call('GET', `/v1/events?after=${key}`)
  t.equal((await call('POST', '/v1/revoke-token', { body: `token=${key}&more=${key}`, headers: asForm })).status, 200)
  await call('GET', '/metrics')
  const events = await call('GET', '/v1/events?limit=100')
  t.ok(events.body.events.length >= 8)
  await service.app.close()

  const { db } = service.database
  const tables = await sql<{ name: string }>`SELECT table_name AS name FROM information_schema.tables WHERE table_schema = 'public'`.execute(db)
  const rows = await Promise.all(tables.rows.map(({ name }) => sql`SELECT * FROM ${sql.table(name)}`.execute(db)))
  const dump = JSON.stringify(rows.map((result) => result.rows), (_name, value: unknown) =>
    (value as { type?: string } | null)?.type === 'Buffer' ? Buffer.from((value as { data: number[] }).data).toString('latin1') : value,
  )
  const [signing] = await db.selectFrom('signing_keys').selectAll().execute()
  const { d } = openSigningKey(signing!, rootsOf(service.config.ROOT_SECRETS!)).privateKey.export({ format: 'jwk' })
  const places = { logs: service.logs(), dump, answers: captured.map(({ text, headers }) => text + JSON.stringify(headers)).join('\n') }
  t.ok(dump.includes('$argon2id$') && places.logs.includes('"route":"/v1/verify"'), 'the search looks at what it should')
  t.same(found({ kid: Buffer.from(signing!.kid, 'base64url') }, places), ['kid in dump, in base64', 'kid in answers, in base64'], 'and finds what is there')
  const ofKeys = revealed.flatMap(({ plaintext_key }) => [plaintext_key, plaintext_key.slice(-60), plaintext_key.slice(-60, -17)])
  t.equal(ofKeys.length, 15)
  const secrets = {
    ...processSecrets(service.config),
    ...Object.fromEntries(ofKeys.map((secret, i) => [`secret ${i} of a key`, Buffer.from(secret)])),
    'operator token': Buffer.from(token),
    'exchanged JWT': Buffer.from(jwt),
    'signature of a JWT': Buffer.from(jwt.split('.')[2]!),
    'private signing key': Buffer.from(d!, 'base64url'),
  }
  t.same(found(secrets, places), [])
  for (const place of ['logs', 'answers'] as const) t.equal(places[place].includes('$argon2'), false, `no hash in ${place}`)
})

t.test('whatever is logged by mistake, no key and no hash leaves in a line', async (t) => {
  const service = await startService(t)
  const { plaintext_key } = await service.issue()
  const { hash } = await service.database.db.selectFrom('keys').select('hash').executeTakeFirstOrThrow()
  const lines: string[] = []
  const destination = new Writable({ write: (line, _encoding, done) => (lines.push(String(line)), done()) })
  const log = createLogger({ level: 'trace', secrets: ['plaintext_key', 'key'], destination })
  log.info({ anything: { deep: [plaintext_key] }, hash }, `a message with ${plaintext_key} and ${hash}`)
  log.error({ err: Object.assign(new Error(plaintext_key), { detail: `Failing row contains (${hash})`, parameters: [plaintext_key] }) })
  log.info({ key: 'canary', a: { plaintext_key: 'canary', b: { headers: { authorization: 'canary', 'x-mecha-key': 'canary' } } }, body: 'canary', req: { body: 'canary' } })
  const text = lines.join('')
  t.equal(lines.length, 3)
  for (const secret of [plaintext_key, plaintext_key.slice(-60, -17), hash, hash.slice(-43), 'canary']) t.equal(text.includes(secret), false)
})
