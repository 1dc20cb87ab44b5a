import { sql } from 'kysely'
import t from 'tap'
import { endOfNew } from '../../../src/control/keys/expiry.js'
import { insertIssue } from '../../../src/control/keys/issue-store.js'
import { newId } from '../../../src/credentials/id.js'
import { parseToken } from '../../../src/credentials/token.js'
import { eventually } from '../../helpers/eventually.js'
import { startService, type Answer } from '../../helpers/service.js'

const BODY = { mecha: 'sales^acmecorp' }

t.test('201: the plaintext is revealed once, with where the key is, and is not to be stored by anyone between', async (t) => {
  const service = await startService(t)
  const token = await service.token()
  const request = { ...BODY, name: 'production', scopes: ['orders:read'], metadata: { region: 'eu', n: [1, null] }, expires_in: 3600 }
  const { status, body, headers } = await service.call('POST', '/v1/keys', { token, body: request })
  t.equal(status, 201)
  t.equal(headers['cache-control'], 'no-store')
  t.equal(headers['location'], `/v1/keys/${body.key.id}`)
  t.match(body.key, {
    id: /^key_[0-7][0-9a-z]{25}$/, mecha: 'sales^acmecorp', org_id: 'acme', name: 'production', status: 'active', scopes: ['orders:read'],
    metadata: { region: 'eu', n: [1, null] }, created_by: 'builtin:alice', first_used_at: null, last_used_at: null, revoked_at: null,
    revoked_by: null, revoke_reason: null, rotated_from: null, rotated_to: null,
  })
  t.equal(Date.parse(body.key.expires_at) - Date.parse(body.key.created_at), 3_600_000)
  t.equal(`key_${body.plaintext_key.split('_')[1]}`, body.key.id)
  t.ok(parseToken(body.plaintext_key))
  const got = await service.call('GET', String(headers['location']), { token })
  t.same(got.body, body.key, 'what is listed is what was answered, and no plaintext')
  t.equal(got.text.includes(body.plaintext_key), false)
})

t.test('201: defaults are no name, no scopes, no metadata and no end', async (t) => {
  const { key } = await (await startService(t)).issue()
  t.match(key, { name: null, scopes: [], metadata: {}, expires_at: null })
})

t.test('201: the policy ends keys whose issuer names no end, and the prefix is the deployment\'s', async (t) => {
  const service = await startService(t, { KEY_DEFAULT_TTL: '1h', KEY_MAX_TTL: '2h', KEY_PREFIX: 'mecha_stg', HASH_PROFILE: 'owasp' })
  const { key, plaintext_key } = await service.issue()
  t.equal(Date.parse(key.expires_at) - Date.parse(key.created_at), 3_600_000)
  t.match(plaintext_key, /^mecha_stg_/)
  t.match(await service.verify(plaintext_key), { valid: true })
})

t.test('400: what is wrong is named, field and rule', async (t) => {
  const service = await startService(t, { KEY_MAX_TTL: '2h' })
  const token = await service.token()
  const deep = JSON.parse('{"a":'.repeat(20) + '1' + '}'.repeat(20))
  const cases: [body: unknown, field: string, rule: string][] = [
    [{}, 'body.mecha', 'required'],
    [{ mecha: 'sales' }, 'body.mecha', 'pattern'],
    [{ mecha: 'Sales^acmecorp' }, 'body.mecha', 'pattern'],
    [{ mecha: 7 }, 'body.mecha', 'type'],
    [{ ...BODY, nmae: 'x' }, 'body.nmae', 'additionalProperties'],
    [{ ...BODY, name: '' }, 'body.name', 'minLength'],
    [{ ...BODY, name: 'a\nb' }, 'body.name', 'pattern'],
    [{ ...BODY, name: 'x'.repeat(101) }, 'body.name', 'maxLength'],
    [{ ...BODY, scopes: 'orders:read' }, 'body.scopes', 'type'],
    [{ ...BODY, scopes: ['a b'] }, 'body.scopes.0', 'pattern'],
    [{ ...BODY, scopes: ['a', 'a'] }, 'body.scopes', 'uniqueItems'],
    [{ ...BODY, metadata: [] }, 'body.metadata', 'type'],
    [{ ...BODY, metadata: { x: 'y'.repeat(4096) } }, 'body.metadata', 'maximum'],
    [{ ...BODY, expires_in: 0 }, 'body.expires_in', 'minimum'],
    [{ ...BODY, expires_in: 1.5 }, 'body.expires_in', 'type'],
    [{ ...BODY, expires_in: '60' }, 'body.expires_in', 'type'],
    [{ ...BODY, expires_in: 7201 }, 'body.expires_in', 'maximum'],
    [{ ...BODY, expires_at: 'tomorrow' }, 'body.expires_at', 'format'],
    [{ ...BODY, expires_at: '2020-01-01T00:00:00Z' }, 'body.expires_at', 'minimum'],
    [{ ...BODY, expires_at: null }, 'body.expires_at', 'maximum'],
    [{ ...BODY, expires_in: 60, expires_at: '2999-01-01T00:00:00Z' }, 'body.expires_in', 'exclusive'],
  ]
  for (const [body, field, rule] of cases) {
    const answer = await service.call('POST', '/v1/keys', { token, body })
    t.equal(answer.status, 400, answer.text)
    t.match(answer.headers['content-type'], 'application/problem+json')
    t.match(answer.body, { code: 'invalid_request', type: '/errors/invalid_request', status: 400, errors: [{ field, rule }] })
    t.ok(answer.body.detail.includes(field), 'the sentence names the field')
  }
  const handle = await service.call('POST', '/v1/keys', { token, body: { mecha: 'sales' } })
  t.match(handle.body.detail, 'must be name^crew: each part 1 to 64 lower case letters')
  for (const metadata of [{ a: 'x\0y' }, { 'a\0': 1 }, { a: '\ud800' }, deep]) {
    const answer = await service.call('POST', '/v1/keys', { token, body: { ...BODY, metadata } })
    t.match(answer, { status: 400, body: { code: 'invalid_request' } }, JSON.stringify(metadata).slice(0, 40))
  }
  t.equal((await service.database.db.selectFrom('keys').select('id').execute()).length, 0, 'nothing is half written')
  t.equal((await service.database.db.selectFrom('mechas').select('handle').execute()).length, 0, 'and no handle is taken')
})

t.test('400: every broken field is named, wherever it is, in words for people', async (t) => {
  const service = await startService(t)
  const token = await service.token()
  const said = ({ status, body }: Awaited<ReturnType<typeof service.call>>) => [status, ...(body.errors as { field: string; message: string }[]).map(({ field, message }) => `${field} ${message}`).sort()]
  const post = async (body: unknown, url = '/v1/keys', headers = {}) => said(await service.call('POST', url, { token, body, headers }))
  const wrong = { name: 'a\0b', scopes: ['x', 'a b', 'x', 5], metadata: { a: { b: '\ud800' }, c: 'y'.repeat(4096) }, expires_in: 0, expires_at: 'tomorrow', nmae: 1, ['a b']: 2 }
  t.same(await post(wrong, '/v1/keys', { 'idempotency-key': 'x'.repeat(256) }), [400, ...[
    'body.name must be Unicode text without NUL',
    'body.metadata.a.b must be Unicode text without NUL',
    'body.mecha is required',
    'body.nmae is not a field of this request',
    'body.a b is not a field of this request',
    'body.name must be 1 to 100 characters without control characters',
    'body.scopes must not have the same entry twice',
    'body.scopes.1 must be 1 to 128 printable ASCII characters without spaces, quotes and backslashes',
    'body.scopes.3 must be 1 to 128 printable ASCII characters without spaces, quotes and backslashes',
    'body.metadata must be at most 4096 bytes of JSON',
    'body.expires_in must be at least 1',
    'body.expires_in cannot be given together with expires_at',
    'body.expires_at must be a time as RFC 3339 has it, such as 2030-01-31T12:00:00Z',
    'headers.idempotency-key must have at most 255 characters',
  ].sort()])
  t.same(said(await service.call('PATCH', '/v1/keys/x', { token, body: {} })), [400, 'body must have at least one field', 'path.id must be a key id, as in key_01jd9p5v3fe8rr2k7m4q9wx0zt'])
  t.same(await post([], '/v1/gateways'), [400, 'body must be an object'])
  t.same(said(await service.call('GET', '/v1/keys?limit=0&status=gone&nope=1', { token })), [400, 'query.limit must be at least 1', 'query.nope is not a field of this request', 'query.status must be one of active, disabled, expired, revoked'])
  const { body } = await service.call('GET', '/v1/events?limit=all&type=nothing', { token })
  t.same(body.errors.map(({ field }: any) => field).sort(), ['query.limit', 'query.type'])
  t.same(body.detail, body.errors.map(({ field, message }: any) => `${field} ${message}`).join('; '), 'the sentence says the same')

  const gateway = await service.gateway()
  const report = (uses: unknown) => service.call('POST', '/v1/usage', { token: gateway, body: { uses } })
  const many = await report(Array.from({ length: 1000 }, () => ({})))
  t.equal(many.body.errors.length, 100, 'a hundred at most')
  t.match(many.body.detail, /^(body\.uses\.\d+\.\w+ is required(; )?){5}; and 1995 more$/)
  const millions = await report(Array.from({ length: 30_000 }, () => 1))
  t.same(millions.body.errors, [{ field: 'body.uses', rule: 'maxItems', message: 'must have at most 1000 entries' }], 'a body of more than there can be is told the first')
  t.same((await service.call('POST', '/v1/usage', { token: gateway })).body.errors, [{ field: 'body', rule: 'required', message: 'is required' }])
})

t.test('400: what the caller chose comes back masked and cut, or not at all', async (t) => {
  const service = await startService(t)
  const token = await service.token()
  const { plaintext_key } = await service.issue()
  const mistyped = plaintext_key.slice(0, -1) + (plaintext_key.endsWith('a') ? 'b' : 'a')
  const foreign = `sk-live-${'Zx9'.repeat(12)}`
  for (const secret of [mistyped, foreign, token, 'x'.repeat(5000), `${'a.b '.repeat(60)}${foreign}`])
    for (const body of [{ [secret]: 1 }, { metadata: { [secret]: '\0' } }, { metadata: { [`${secret}\0`]: { deep: '\0' } } }, { metadata: { a: { [secret]: JSON.parse('{"a":'.repeat(20) + '1' + '}'.repeat(20)) } } }]) {
      const answer = await service.call('POST', '/v1/keys', { token, body: { ...BODY, ...body } })
      t.match(answer, { status: 400, body: { code: 'invalid_request' } })
      for (const { field } of answer.body.errors) t.ok(field.length <= 200, `${field.length} characters`)
      for (const part of [secret.slice(0, 40), secret.slice(-30), secret.slice(20, 60)]) if (!/^(a\.b )/.test(part)) t.notOk(answer.text.includes(part), `nothing of ${part}`)
    }
  const { body } = await service.call('POST', '/v1/keys', { token, body: { ...BODY, metadata: { 'a\u001b[31m\u2028b': '\0' } } })
  t.equal(body.errors[0].field, 'body.metadata.a�[31m�b', 'nor what would write over a screen')
})

t.test('400, 413 and 415: bodies that are not what they must be', async (t) => {
  const service = await startService(t)
  const token = await service.token()
  const send = (body: string, type = 'application/json') =>
    service.call('POST', '/v1/keys', { token, body, headers: { 'content-type': type } })
  t.match(await send('{"mecha":'), { status: 400, body: { code: 'malformed_body' } })
  t.match(await send(''), { status: 400, body: { code: 'invalid_request', errors: [{ field: 'body.mecha', rule: 'required' }] } })
  t.match(await send('null'), { status: 400, body: { code: 'invalid_request', errors: [{ field: 'body', rule: 'type' }] } })
  for (const [body, field] of [['{"__proto__":{"x":1},"mecha":"a^b"}', 'body.__proto__'], ['{"mecha":"a^b","metadata":{"a":[{"__proto__":{"x":1}}]}}', 'body.metadata.a.0.__proto__']] as const)
    t.match(await send(body), { status: 400, body: { code: 'invalid_request', errors: [{ field, message: 'is no name that a field may have' }] } })
  t.match(await send('mecha=a%5Eb', 'application/x-www-form-urlencoded'), { status: 415, body: { code: 'unsupported_media_type' } })
  t.match(await send(`{"mecha":"a^b","name":"${'x'.repeat(16 * 1024)}"}`), { status: 413, body: { code: 'body_too_large' } })
})

t.test('400: a plaintext key is refused wherever it would be kept', async (t) => {
  const service = await startService(t)
  const token = await service.token()
  const { key, plaintext_key } = await service.issue()
  for (const body of [{ ...BODY, name: plaintext_key }, { ...BODY, metadata: { note: [`leaked: ${plaintext_key}`] } }, { ...BODY, metadata: { [plaintext_key]: 1 } }]) {
    const answer = await service.call('POST', '/v1/keys', { token, body })
    t.match(answer, { status: 400, body: { code: 'contains_secret' } })
    t.equal(answer.text.includes(plaintext_key), false)
  }
  for (const [method, url] of [['POST', `/v1/keys/${key.id}/revoke`], ['POST', '/v1/mechas/sales%5Eacmecorp/revoke-keys']] as const)
    t.match(await service.call(method, url, { token, body: { reason: `leaked ${plaintext_key}` } }), { status: 400, body: { code: 'contains_secret' } })
  t.match(await service.call('GET', `/v1/keys/${plaintext_key}`, { token }), { status: 400, body: { code: 'contains_secret' } })
  t.match(await service.call('GET', `/v1/keys?cursor=${plaintext_key}`, { token }), { status: 400, body: { code: 'contains_secret' } })
  t.equal(service.logs().includes(plaintext_key), false)
})

t.test('404: a handle belongs to the organization that first issued for it', async (t) => {
  const service = await startService(t)
  await service.issue()
  const rival = await service.token({ org: 'rival' })
  const taken = await service.call('POST', '/v1/keys', { token: rival, body: BODY })
  const none = await service.call('GET', '/v1/keys/key_01jd9p5v3fe8rr2k7m4q9wx0zt', { token: rival })
  t.equal(taken.status, 404)
  t.equal(taken.text, none.text)
  t.equal((await service.call('POST', '/v1/keys', { token: rival, body: { mecha: 'buyer^acmecorp' } })).status, 201, 'a handle, not a crew')
})

t.test('409: no more keys than a Mecha may have, and one more when one has ended', async (t) => {
  const service = await startService(t, { MAX_ACTIVE_KEYS_PER_MECHA: '2' })
  const token = await service.token()
  const { key } = await service.issue()
  const second = await service.issue()
  await service.call('PATCH', `/v1/keys/${second.key.id}`, { token, body: { enabled: false } })
  const refused = await service.call('POST', '/v1/keys', { token, body: BODY })
  t.match(refused, { status: 409, body: { code: 'key_limit_reached' } }, 'a disabled key can come back, so it counts')
  await service.issue({ mecha: 'buyer^acmecorp' })
  await service.call('POST', `/v1/keys/${key.id}/revoke`, { token })
  await service.issue()
  await service.database.db.updateTable('keys').set({ expires_at: new Date() }).where('revoked_at', 'is', null).where('mecha', '=', 'sales^acmecorp').execute()
  await service.issue()
  await service.issue()
  t.equal((await service.call('POST', '/v1/keys', { token, body: BODY })).status, 409)
})

t.test('fifty issues at the same instant stop exactly at the limit', async (t) => {
  const service = await startService(t, { MAX_ACTIVE_KEYS_PER_MECHA: '20', DATABASE_TIMEOUT: '30s' })
  const token = await service.token()
  const answers = await Promise.all(Array.from({ length: 50 }, () => service.call('POST', '/v1/keys', { token, body: BODY })))
  t.equal(answers.filter(({ status }) => status === 201).length, 20)
  t.equal(answers.filter(({ status, body }) => status === 409 && body.code === 'key_limit_reached').length, 30)
  const { body } = await service.call('GET', '/v1/keys?status=active&limit=100', { token })
  t.equal(body.keys.length, 20)
})

t.test('fifty organizations that claim one handle at the same instant: one gets it', async (t) => {
  const service = await startService(t, { DATABASE_TIMEOUT: '30s' })
  const tokens = await Promise.all(Array.from({ length: 50 }, (_, i) => service.token({ org: `org${i}` })))
  const answers = await Promise.all(tokens.map((token) => service.call('POST', '/v1/keys', { token, body: BODY })))
  t.equal(answers.filter(({ status }) => status === 201).length, 1)
  t.equal(answers.filter(({ status }) => status === 404).length, 49)
})

t.test('whoever waits for a Mecha counts what its holder has left', async (t) => {
  const service = await startService(t, { MAX_ACTIVE_KEYS_PER_MECHA: '2' })
  const token = await service.token()
  await service.issue()
  const { db } = service.database
  const isWaiting = async () => (await sql`SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'`.execute(db)).rows.length > 0
  let answer: Promise<Answer>
  await db.transaction().execute(async (trx) => {
    await sql`SELECT FROM mechas WHERE handle = ${BODY.mecha} FOR UPDATE`.execute(trx)
    answer = service.call('POST', '/v1/keys', { token, body: BODY })
    await eventually(isWaiting)
    await sql`INSERT INTO keys (id, kind, org_id, mecha, hash, tag_root, pepper_root, created_at, created_by) SELECT ${newId()}, kind, org_id, mecha, hash, tag_root, pepper_root, created_at, created_by FROM keys`.execute(trx)
  })
  t.match(await answer!, { status: 409, body: { code: 'key_limit_reached' } })
})

t.test('PostgreSQL gives a key the end that the policy gives it, or refuses what the policy refuses', async (t) => {
  const { database: { db } } = await startService(t)
  const policy = { KEY_DEFAULT_TTL: undefined, KEY_MAX_TTL: 60 }
  const hash = `$argon2id$v=19$m=1024,t=1,p=1$${'A'.repeat(22)}$${'A'.repeat(43)}`
  const issue = (ends_at: Date | null, life_seconds: number | null) =>
    insertIssue(db, {
      key_id: newId(), key_hash: hash, key_tag_root: 'x', key_pepper_root: 'x', of_org: 'acme', of_mecha: BODY.mecha, key_name: null, key_scopes: [], key_metadata: {},
      is_claimed: true, most_keys: 1000, ends_at, life_seconds, longest_seconds: policy.KEY_MAX_TTL, actor: 'test', request_id: 'x', address: 'x',
    }, undefined)
  const seen = { refused: 0, made: 0 }
  // Around now and around the longest life, by what the clock may say when the statement has come there.
  for (const start of [0, 60_000]) for (let ms = -3; ms < 12; ms++) {
    const endsAt = new Date(Date.now() + start + ms)
    const issued = await issue(endsAt, null)
    if ('key' in issued) {
      seen.made++
      t.same(issued.key.expires_at, endOfNew({ endsAt, lifeSeconds: null }, issued.key.created_at, policy))
    } else if ('endRefusedAt' in issued) {
      seen.refused++
      t.throws(() => endOfNew({ endsAt, lifeSeconds: null }, issued.endRefusedAt, policy), { code: 'invalid_request' })
    } else t.fail(JSON.stringify(issued))
  }
  t.ok(seen.made > 5 && seen.refused > 5, `${seen.made} made, ${seen.refused} refused`)
  for (const lifeSeconds of [1, 60]) {
    const issued = await issue(null, lifeSeconds)
    if ('key' in issued) t.same(issued.key.expires_at, endOfNew({ endsAt: null, lifeSeconds }, issued.key.created_at, policy))
    else t.fail(JSON.stringify(issued))
  }
  t.match(await issue(null, null), { key: { expires_at: null } })
})
