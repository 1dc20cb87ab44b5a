import { randomBytes } from 'node:crypto'
import { hash as argon2 } from '@node-rs/argon2'
import { sql } from 'kysely'
import { Client } from 'pg'
import t from 'tap'
import { hashAlike, RUN_LOCK } from '../../../src/db/followers.js'
import { costNumber, hashSecret } from '../../../src/credentials/hash.js'
import { newId } from '../../../src/credentials/id.js'
import { deriveRoot, rootsOf } from '../../../src/credentials/roots.js'
import { makeToken, parseToken } from '../../../src/credentials/token.js'
import { applied } from '../../helpers/database.js'
import { eventually } from '../../helpers/eventually.js'
import { costs } from '../../helpers/metrics.js'
import { fresh, startService } from '../../helpers/service.js'
import { layWire } from '../../helpers/wire.js'

t.test('200: what a gateway learns of a valid key', async (t) => {
  const service = await startService(t)
  const { key, plaintext_key } = await service.issue({ scopes: ['a', 'b'], metadata: { region: { name: 'Zürich 東京 😀' } }, expires_in: 60 })
  t.same(await service.verify(plaintext_key, { mecha: 'sales^acmecorp', scopes: ['b'] }), {
    valid: true, key_id: key.id, mecha: { handle: 'sales^acmecorp', name: 'sales', crew: 'acmecorp' }, org_id: 'acme',
    scopes: ['a', 'b'], metadata: { region: { name: 'Zürich 東京 😀' } }, expires_at: key.expires_at,
  })
  t.match(await service.verify(`secret-token:${plaintext_key}`), { valid: true })
  const answer = await service.call('POST', '/v1/verify', { token: await service.gateway(), body: { key: plaintext_key } })
  t.equal(answer.headers['cache-control'], 'no-store')
  t.equal(Number(answer.headers['content-length']), Buffer.byteLength(answer.text), 'a length in bytes')
})

t.test('200: every refusal has its code', async (t) => {
  const service = await startService(t)
  const token = await service.token()
  const { key, plaintext_key } = await service.issue({ scopes: ['a'] })
  const refused = async (code: string, presented: string, demand?: object) => t.same(await service.verify(presented, demand), { valid: false, code }, code)
  for (const text of ['', ' ', 'nonsense', `${plaintext_key} `, plaintext_key.slice(1), plaintext_key.toUpperCase(), 'x'.repeat(15_000), `${plaintext_key}\n`]) await refused('malformed', text)
  await refused('unknown', makeToken('mecha', newId(), deriveRoot(randomBytes(32).toString('hex'))).text)
  await refused('unknown', makeToken('mecha', newId(), rootsOf(service.config.ROOT_SECRETS!)[0]).text)
  await refused('unknown', await service.gateway())
  await refused('mecha_mismatch', plaintext_key, { mecha: 'buyer^acmecorp' })
  await refused('insufficient_scope', plaintext_key, { scopes: ['a', 'b'] })
  await service.call('PATCH', `/v1/keys/${key.id}`, { token, body: { enabled: false } })
  await refused('disabled', plaintext_key, { mecha: 'buyer^acmecorp' })
  await service.database.db.updateTable('keys').set({ expires_at: new Date() }).where('kind', '=', 'mecha').execute()
  await applied(service.database)
  await refused('expired', plaintext_key)
  await service.call('POST', `/v1/keys/${key.id}/revoke`, { token })
  await refused('revoked', plaintext_key)
})

t.test('400, 401 and 415: what is no verify request', async (t) => {
  const service = await startService(t)
  const gateway = await service.gateway()
  const send = (body: unknown, headers?: Record<string, string>) => service.call('POST', '/v1/verify', { token: gateway, body, ...(headers && { headers }) })
  for (const [body, field] of [
    [{}, 'body.key'], [{ key: 7 }, 'body.key'], [{ key: 'x', mecha: 'sales' }, 'body.mecha'], [{ key: 'x', scopes: 'a' }, 'body.scopes'], [{ key: 'x', more: 1 }, 'body.more'],
  ] as const)
    t.match(await send(body), { status: 400, body: { errors: [{ field }] } }, JSON.stringify(body))
  t.match(await send('key=x', { 'content-type': 'text/plain' }), { status: 415 })
  t.match(await service.call('POST', '/v1/verify', { body: { key: 'x' } }), { status: 401, body: { code: 'unauthenticated' } })
})

t.test('a key that is known costs no query and no argon2, and neither does one that is malformed or forged', async (t) => {
  const service = await startService(t)
  await fresh(service)
  const gateway = await service.gateway()
  const { plaintext_key } = await service.issue()
  const before = await costs(service)
  t.match(await service.verify(plaintext_key, {}, gateway), { valid: true })
  const known = await costs(service)
  t.ok(known.queries > before.queries && known.argon2 > before.argon2, 'the counters count')
  const foreign = deriveRoot(randomBytes(32).toString('hex'))
  for (let i = 0; i < 20; i++) {
    t.match(await service.verify(plaintext_key, {}, gateway), { valid: true })
    t.equal((await service.verify(makeToken('mecha', newId(), foreign).text, {}, gateway)).code, 'unknown')
    t.equal((await service.verify(plaintext_key.slice(0, -1) + (plaintext_key.endsWith('0') ? '1' : '0'), {}, gateway)).code, 'malformed')
  }
  for (const credential of ['nonsense', makeToken('mgw', newId(), foreign).text])
    t.equal((await service.call('POST', '/v1/verify', { token: credential, body: { key: plaintext_key } })).status, 401)
  t.same(await costs(service), known)
})

t.test('a key that somebody made with the root secret costs one query, and verifies nothing', async (t) => {
  const service = await startService(t)
  await fresh(service)
  const gateway = await service.gateway()
  const { plaintext_key } = await service.issue()
  await service.verify(plaintext_key, {}, gateway)
  const [root] = rootsOf(service.config.ROOT_SECRETS!)
  const before = await costs(service)
  for (let i = 0; i < 10; i++) t.same(await service.verify(makeToken('mecha', newId(), root).text, {}, gateway), { valid: false, code: 'unknown' })
  t.same(await costs(service), { queries: before.queries + 10, argon2: before.argon2 })
  // Under the id of a key that is there, argon2 decides.
  t.same(await service.verify(makeToken('mecha', parseToken(plaintext_key)!.id, root).text, {}, gateway), { valid: false, code: 'unknown' })
})

t.test('a genuine key that is revoked or deleted stays as cheap', async (t) => {
  const service = await startService(t)
  const [gateway, token] = [await service.gateway(), await service.token()]
  const [revoked, deleted] = [await service.issue(), await service.issue()]
  await service.call('POST', `/v1/keys/${revoked.key.id}/revoke`, { token })
  await service.database.db.deleteFrom('keys').where('id', '=', parseToken(deleted.plaintext_key)!.id).execute()
  await applied(service.database)
  const codes = async () => [await service.verify(revoked.plaintext_key, {}, gateway), await service.verify(deleted.plaintext_key, {}, gateway)].map(({ code }) => code)
  t.same(await codes(), ['revoked', 'unknown'])
  const once = await costs(service)
  for (let i = 0; i < 20; i++) t.same(await codes(), ['revoked', 'unknown'])
  t.same(await costs(service), once)
})

t.test('many requests for one key are one query and one argon2; for many keys, few queries', async (t) => {
  const first = await startService(t, { MAX_ACTIVE_KEYS_PER_MECHA: '100' })
  const gateway = await first.gateway()
  const keys: string[] = []
  while (keys.length < 60) keys.push((await first.issue()).plaintext_key)
  for (const key of keys.slice(1)) await first.verify(key, {}, gateway)
  const wire = await layWire(t, first.database.runtime)
  // Uses are written down by one more query, at some time.
  const environment = { ROOT_SECRETS: first.config.ROOT_SECRETS!.join(), DATABASE_DIRECT_URL: first.database.runtime, USAGE_FLUSH_INTERVAL: '1h' }
  const second = await startService(t, environment, { ...first.database, runtime: wire.through(first.database.runtime) })
  await fresh(second)
  await second.verify('', {}, gateway)

  const before = await costs(second)
  const ask = () => Array.from({ length: 25 }, () => second.verify(keys[0]!, {}, gateway))
  const isRead = wire.hold()
  const early = ask()
  await isRead
  // The row is on its way when these come.
  const late = ask()
  await second.call('GET', '/livez')
  wire.release()
  for (const { valid } of await Promise.all([...early, ...late])) t.equal(valid, true)
  const one = await costs(second)
  t.same({ queries: one.queries - before.queries, argon2: one.argon2 - before.argon2 }, { queries: 2, argon2: 1 }, 'its row and its first use')
  for (const { valid } of await Promise.all(keys.slice(1).map((key) => second.verify(key, {}, gateway)))) t.equal(valid, true)
  const many = await costs(second)
  t.equal(many.argon2 - one.argon2, keys.length - 1)
  t.ok(many.queries - one.queries <= 10, `${many.queries - one.queries} queries for ${keys.length - 1} keys`)
})

t.test('a key whose row was changed to another Mecha or another id by hand is refused', async (t) => {
  const service = await startService(t)
  const { db } = service.database
  const victim = await service.issue({ mecha: 'boss^acmecorp' })
  const { plaintext_key } = await service.issue()
  t.match(await service.verify(plaintext_key), { valid: true })
  await db.updateTable('keys').set({ mecha: 'boss^acmecorp' }).where('mecha', '=', 'sales^acmecorp').execute()
  await applied(service.database)
  t.same(await service.verify(plaintext_key), { valid: false, code: 'unknown' })
  await db.updateTable('keys').set({ mecha: 'sales^acmecorp' }).where('mecha', '=', 'boss^acmecorp').where('created_at', '>', new Date(victim.key.created_at)).execute()
  // One's own hash on somebody else's row.
  const rows = await db.selectFrom('keys').select(['id', 'hash', 'mecha']).where('kind', '=', 'mecha').orderBy('created_at').execute()
  const [of, mine] = [rows.find((row) => row.mecha === 'boss^acmecorp')!, rows.find((row) => row.mecha === 'sales^acmecorp')!]
  await db.updateTable('keys').set({ hash: mine.hash }).where('id', '=', of.id).execute()
  await applied(service.database)
  t.same(await service.verify(victim.plaintext_key), { valid: false, code: 'unknown' })
  t.match(await service.verify(plaintext_key), { valid: true }, 'put back, it is good again')
})

t.test('a verify renews a hash whose input held the secret itself, and knows no version of a later release', async (t) => {
  const service = await startService(t)
  const { plaintext_key } = await service.issue()
  const { db } = service.database
  const { id, secret } = parseToken(plaintext_key)!
  const root = rootsOf(service.config.ROOT_SECRETS!)[0]
  const row = () => db.selectFrom('keys').select(['hash', 'pepper_root']).where('id', '=', id).executeTakeFirstOrThrow()
  t.match(await row(), { pepper_root: `${root.id}/2` }, 'a new hash holds a digest')
  const hash = await hashSecret({ id, subject: 'sales^acmecorp', secret }, { root, version: 1 }, 'high-entropy')
  await db.updateTable('keys').set({ hash, pepper_root: root.id }).where('id', '=', id).execute()
  t.match(await service.verify(plaintext_key), { valid: true }, 'as an earlier release made it')
  // No answer waits for it.
  while ((await row()).pepper_root === root.id);
  t.match(await row(), { pepper_root: `${root.id}/2` })
  await applied(service.database)
  t.match(await service.verify(plaintext_key), { valid: true }, 'and again, with the new hash')
  await db.updateTable('keys').set({ hash: (await row()).hash.replace(/.$/, (last) => (last === 'A' ? 'B' : 'A')), pepper_root: `${root.id}/3` }).where('id', '=', id).execute()
  await applied(service.database)
  const answer = await service.call('POST', '/v1/verify', { token: await service.gateway(), body: { key: plaintext_key } })
  t.match(answer, { status: 503, body: { code: 'root_secret_missing' } })
})

t.test('while a replica of the release before is alive, no hash is made that it could not verify', async (t) => {
  const during = await startService(t)
  const { db } = during.database
  await sql`INSERT INTO replicas (id, snapshot, seen_at) VALUES (gen_random_uuid(), pg_current_snapshot(), now())`.execute(db)
  const { plaintext_key } = await during.issue()
  const gateway = await during.gateway()
  const peppers = async () => (await db.selectFrom('keys').select('pepper_root').execute()).map(({ pepper_root }) => pepper_root)
  const { id } = rootsOf(during.config.ROOT_SECRETS!)[0]
  t.match(await during.verify(plaintext_key, {}, gateway), { valid: true })
  t.same(await peppers(), [id, id])
  await sql`DELETE FROM replicas WHERE secret_digest IS NULL`.execute(db)
  const after = await startService(t, { ROOT_SECRETS: during.config.ROOT_SECRETS!.join() }, during.database)
  t.match(await after.verify(plaintext_key, {}, gateway), { valid: true })
  // No answer waits for it.
  while ((await peppers()).includes(id));
  t.same(await peppers(), [`${id}/2`, `${id}/2`], 'once it is gone, each verify renews one')
})

t.test('a verify renews a hash made with another profile, or under an older root secret', async (t) => {
  const [old, young] = [randomBytes(32).toString('hex'), randomBytes(32).toString('hex')]
  const before = await startService(t, { ROOT_SECRETS: old, HASH_PROFILE: 'owasp' })
  const { plaintext_key } = await before.issue()
  const gateway = await before.gateway()
  const after = await startService(t, { ROOT_SECRETS: `${young},${old}` }, before.database)
  const row = () => before.database.db.selectFrom('keys').select(['hash', 'tag_root', 'pepper_root']).where('kind', '=', 'mecha').executeTakeFirstOrThrow()
  t.match(await row(), { hash: /m=19456,t=2/, pepper_root: `${deriveRoot(old).id}/2` })
  t.match(await after.verify(plaintext_key, {}, gateway), { valid: true })
  // No answer waits for it.
  while ((await row()).pepper_root === `${deriveRoot(old).id}/2`);
  t.match(await row(), { hash: /m=64,t=1/, pepper_root: `${deriveRoot(young).id}/2`, tag_root: deriveRoot(old).id })
  t.match(await after.verify(plaintext_key, {}, gateway), { valid: true }, 'and again, with the new hash')
  const dropped = await startService(t, { ROOT_SECRETS: young }, before.database)
  const fresh = await dropped.gateway()
  t.same(await dropped.verify(plaintext_key, {}, fresh), { valid: false, code: 'unknown' }, 'without the old root secret its tag is nobody\'s')
  const forgetful = await startService(t, { ROOT_SECRETS: `${randomBytes(32).toString('hex')},${old}` }, before.database)
  const answer = await forgetful.call('POST', '/v1/verify', { token: await forgetful.gateway(), body: { key: plaintext_key } })
  t.match(answer, { status: 503, body: { code: 'root_secret_missing' } }, 'a missing pepper is an outage, not a refusal')
})

t.test('a verify renews a hash of the parameters of the release before, but not while a replica of it would renew it back', async (t) => {
  const during = await startService(t)
  const { db } = during.database
  const { plaintext_key } = await during.issue()
  const gateway = await during.gateway()
  const [root] = rootsOf(during.config.ROOT_SECRETS!)
  const { id, secret } = parseToken(plaintext_key)!
  const digest = Buffer.from(root.secretMac(secret), 'latin1').toString('base64url')
  const old = await argon2(`${id}\nsales^acmecorp\n${digest}\n2`, { algorithm: 2, memoryCost: 1024, timeCost: 1, parallelism: 1, secret: root.pepper })
  await db.updateTable('keys').set({ hash: old }).where('id', '=', id).execute()
  const hashNow = async () => (await db.selectFrom('keys').select('hash').where('id', '=', id).executeTakeFirstOrThrow()).hash
  // As a follower of the release before holds it, on a connection of its own.
  const follower = new Client({ connectionString: during.database.runtime })
  await follower.connect()
  await follower.query('SELECT pg_advisory_lock_shared($1, 1)', [RUN_LOCK])
  t.match(await during.verify(plaintext_key, {}, gateway), { valid: true })
  t.equal(await hashAlike(db, costNumber('high-entropy'))(), false)
  t.equal(await hashNow(), old)
  await follower.end()
  await eventually(() => hashAlike(db, costNumber('high-entropy'))())
  t.equal(await hashAlike(db, costNumber('owasp'))(), false, 'nor is it alike where a setting differs')
  const after = await startService(t, { ROOT_SECRETS: during.config.ROOT_SECRETS!.join() }, during.database)
  t.match(await after.verify(plaintext_key, {}, gateway), { valid: true })
  // No answer waits for it.
  await eventually(async () => (await hashNow()) !== old)
  t.match(await hashNow(), /^\$argon2id\$v=19\$m=64,t=1,p=1\$/)
  await applied(during.database)
  t.match(await after.verify(plaintext_key, {}, gateway), { valid: true }, 'and again, with the new hash')
})
