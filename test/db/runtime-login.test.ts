/** With the runtime plane's database login, and not with the service: what `docs/security.md` says that it can do, and nothing else. */

import { randomBytes, randomUUID } from 'node:crypto'
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { createLocalJWKSet, jwtVerify, SignJWT } from 'jose'
import { sql, type Kysely } from 'kysely'
import t, { type Test } from 'tap'
import { openDatabase } from '../../src/db/pool.js'
import type { Database } from '../../src/db/tables.js'
import { hashSecret } from '../../src/credentials/hash.js'
import { parsePublicId } from '../../src/credentials/id.js'
import { rootsOf } from '../../src/credentials/roots.js'
import { openSigningKey } from '../../src/credentials/signing-key.js'
import { makeToken } from '../../src/credentials/token.js'
import { PACKAGE_ROOT } from '../../src/package-root.js'
import { applied, createDatabase } from '../helpers/database.js'
import { eventually } from '../helpers/eventually.js'
import { rightsOf } from '../helpers/rights.js'
import { fresh, startService, type Service } from '../helpers/service.js'

const DENIED = { code: '42501' }
const SECRET = "'\\x00112233445566778899aabbccddeeff'"

type Run = <Row extends object = any>(statement: string) => Promise<Row[]>

function login(t: Test, { database }: Pick<Service, 'database'>): { runtime: Kysely<Database>; run: Run; owner: Kysely<Database> } {
  const runtime = openDatabase({ url: database.runtime, size: 1, timeoutMs: 10_000, name: 'test' })
  t.teardown(() => runtime.destroy())
  return { runtime, owner: database.db, run: async (statement) => (await sql.raw(statement).execute(runtime)).rows as any }
}

/** What the security model says in italics that this login can do, and which of its rights are for that. */
const RIGHTS: Record<string, readonly string[]> = {
  Read: [
    ...['keys', 'key_usage', 'key_refusals', 'signing_keys', 'token_status', 'nonces', 'changes', 'change_horizon', 'replicas', 'database_identity', 'kysely_migration'].map((table) => `SELECT ${table}`),
    'USAGE public', ...['current_identity', 'current_timeline', 'current_history', 'restore_hold', 'writes_as_control', 'is_being_erased', 'token_statuses_between', 'token_status_changes'].map((name) => `EXECUTE ${name}`),
    // It writes that this history is of the accepted database, where that is so.
    'EXECUTE verify_history',
  ],
  'Break keys': ['UPDATE keys.hash', 'UPDATE keys.pepper_root'],
  'end them': ['EXECUTE revoke_by_holder'],
  'Write false times': ['INSERT key_usage', 'UPDATE key_usage.last_used_at', 'UPDATE key_usage.last_used_by', 'INSERT key_refusals', 'UPDATE key_refusals.last_refused_at', 'UPDATE key_refusals.last_refused_code'],
  'Take or forget nonces': ['EXECUTE take_nonce', 'INSERT nonces', 'UPDATE nonces.expires_at', 'DELETE nonces', 'EXECUTE token_status_place'],
  'Keep receipts from being complete': ['EXECUTE confirm_feed', 'EXECUTE leave_feed', 'INSERT replicas', 'UPDATE replicas', 'DELETE replicas'],
  'Say that the database lost what it had known': ['EXECUTE recall_feed'],
  // It removes what everybody has applied, and makes others begin anew: `test/runtime/changes/history.test.ts`.
  'Make others wait': ['EXECUTE sweep_changes'],
}

t.test('the security model says what this login can do, and it has no right for anything else', async (t) => {
  const model = readFileSync(join(PACKAGE_ROOT, 'docs', 'security.md'), 'utf8')
  const section = /\n### With the runtime plane's database login\n(.*?)\n### /s.exec(model)![1]!
  const said = section.split('\n').filter((line) => line.startsWith('- ')).flatMap((line) => [...line.matchAll(/\*([^*]+)\*/g)].map(([, words]) => words!))
  t.same([...said, 'Read'].sort(), Object.keys(RIGHTS).sort())
  const { owner } = login(t, await startService(t))
  t.same(await rightsOf('mecha_keys_runtime', owner), Object.values(RIGHTS).flat().sort())
})

t.test('what it can do to keys: break them, end them, write false times of use', async (t) => {
  const service = await startService(t)
  const { run } = login(t, service)
  const token = await service.token()
  const [broken, ended, never, used] = [await service.issue(), await service.issue(), await service.issue(), await service.issue()]
  const idOf = ({ key }: { key: { id: string } }) => parsePublicId('mecha', key.id)!
  const metadata = async ({ key }: { key: { id: string } }) => (await service.call('GET', `/v1/keys/${key.id}`, { token })).body
  for (const one of [broken, ended, used]) t.match(await service.verify(one.plaintext_key), { valid: true })
  const before = await metadata(used)

  await run(`UPDATE keys SET hash = (SELECT hash FROM keys WHERE id = '${idOf(used)}') WHERE id = '${idOf(broken)}'`)
  await applied(service.database)
  t.same(await service.verify(broken.plaintext_key), { valid: false, code: 'unknown' })
  await run(`SELECT revoke_by_holder(id, hash, 'request', '203.0.113.7') FROM keys WHERE id = '${idOf(ended)}'`)
  await applied(service.database)
  t.same(await service.verify(ended.plaintext_key), { valid: false, code: 'revoked' })
  const { events } = (await service.call('GET', `/v1/events?key_id=${ended.key.id}`, { token })).body
  t.match(events.at(-1), { type: 'key.revoked', actor: 'holder' })

  await run(`INSERT INTO key_usage (key_id, first_used_at, last_used_at, last_used_by) VALUES ('${idOf(never)}', '2001-01-01', '2999-01-01', gen_random_uuid())`)
  await run(`INSERT INTO key_refusals VALUES ('${idOf(never)}', '2999-01-01', 'revoked')`)
  t.match(await metadata(never), { status: 'active', first_used_at: /^2001/, last_used_at: /^2999/, last_used_by: /^gw_/, last_refused_at: /^2999/, last_refused_code: 'revoked' })
  await run(`UPDATE key_usage SET last_used_at = '2001-01-01', last_used_by = NULL WHERE key_id = '${idOf(used)}'`)
  t.match(await metadata(used), { first_used_at: before.first_used_at, last_used_at: /^2001/, last_used_by: null }, 'a first use that is there stays')
  await t.rejects(run(`UPDATE key_refusals SET last_refused_code = 'x'`), { code: '23514' })
})

t.test('what it can do to nonces: take them, and forget them', async (t) => {
  const service = await startService(t)
  const { run } = login(t, service)
  const { key } = await service.issue()
  const gateway = await service.gateway()
  const take = () => service.call('POST', '/v1/nonces', { token: gateway, body: { key_id: key.id, nonce: 'n'.repeat(22), expires_at: new Date(Date.now() + 60_000).toISOString() } })
  t.equal((await take()).status, 201)
  t.match(await take(), { status: 409, body: { code: 'nonce_reused' } })
  await run('DELETE FROM nonces')
  t.equal((await take()).status, 201, 'forgotten')
  await run('DELETE FROM nonces')
  await run(`INSERT INTO nonces (key_id, digest, expires_at) VALUES ('${parsePublicId('mecha', key.id)}', sha256('${'n'.repeat(22)}'), now() + interval '1 hour')`)
  t.match(await take(), { status: 409, body: { code: 'nonce_reused' } }, 'taken before its request came')
})

t.test('what it can do to receipts: keep them from being complete, and speak for replicas of the release before', async (t) => {
  const database = await createDatabase(t)
  const service = await startService(t, { REVOCATION_MAX_STALENESS: '1s' }, database)
  const { run } = login(t, service)
  await fresh(service)
  const token = await service.token()
  const revoked = async () => (await service.call('POST', `/v1/keys/${(await service.issue()).key.id}/revoke`, { token, headers: { prefer: 'wait=0' } })).body.propagation
  const live = (await run('SELECT id FROM replicas'))[0].id
  const made = randomUUID()
  await run(`SELECT confirm_feed('${made}', ${SECRET}, pg_current_snapshot(), history, 600000) FROM replicas`)
  t.match(await revoked(), { replicas: 2, complete: false })
  await run(`SELECT leave_feed('${made}', ${SECRET})`)

  const old = randomUUID()
  await run(`INSERT INTO replicas (id, snapshot, seen_at) VALUES ('${old}', '1:1:', now())`)
  t.match(await revoked(), { replicas: 2, complete: false })
  await run(`UPDATE replicas SET snapshot = '999999999:999999999:', seen_at = now()`)
  await run(`DELETE FROM replicas`)
  t.same(await run('SELECT id FROM replicas'), [{ id: live }], 'and of none that has a secret')

  // While it holds this lock no replica confirms anything, so none is vouched for.
  const holding = openDatabase({ url: database.runtime, size: 1, timeoutMs: 30_000, name: 'test' })
  t.teardown(() => holding.destroy())
  await holding.transaction().execute(async (trx) => {
    await sql`LOCK TABLE replicas IN ACCESS EXCLUSIVE MODE`.execute(trx)
    await eventually(async () => (await service.call('GET', '/metrics')).text.includes('\nmecha_keys_feed_fresh 0\n'))
  })
  await fresh(service)
})

t.test('what it can say of the database: that it lost what it had known, and that a timeline is known', async (t) => {
  const database = await createDatabase(t)
  const service = await startService(t, {}, database)
  const { run, owner } = login(t, service)
  const gateway = await service.gateway()
  const { plaintext_key } = await service.issue()
  await fresh(service)
  const ask = () => service.call('POST', '/v1/verify', { token: gateway, body: { key: plaintext_key } })
  t.match(await ask(), { status: 200, body: { valid: true } })
  const mine = randomUUID()
  const hold = async () => (await run('SELECT restore_hold() AS hold'))[0].hold
  await run(`SELECT confirm_feed('${mine}', ${SECRET}, pg_current_snapshot(), 'x', 1000)`)
  await run(`SELECT recall_feed('${mine}', ${SECRET}, current_timeline(), 1000)`)
  t.equal(await hold(), 'lost')
  await eventually(async () => (await ask()).status === 503)
  t.match(await ask(), { body: { code: 'database_restored' } })
  await run(`SELECT recall_feed('${mine}', ${SECRET}, current_timeline(), 1)`)
  t.equal(await hold(), 'lost', 'to lift that takes an operator')
  await sql`SELECT accept_database('test')`.execute(owner)
  await eventually(async () => (await ask()).status === 200)

  // As after a recovery to a point in time, which every replica was restarted in.
  await sql`UPDATE database_identity SET timeline = '00000000'`.execute(owner)
  t.equal(await hold(), 'timeline')
  await run(`SELECT recall_feed('${mine}', ${SECRET}, '00000000', 1)`)
  t.equal(await hold(), null)
  await sql`UPDATE database_identity SET identity = 'another'`.execute(owner)
  for (const timeline of ['00000000', '00000001']) await run(`SELECT recall_feed('${mine}', ${SECRET}, '${timeline}', 1)`)
  t.equal(await hold(), 'restored', 'that of a restore is not lifted by it')
})

t.test('what it can do to others: make them wait, and end sessions of its own login', async (t) => {
  const database = await createDatabase(t)
  const service = await startService(t, { DATABASE_TIMEOUT: '1s' }, database)
  const { runtime } = login(t, service)
  const { key } = await service.issue()
  const token = await service.token()
  const revoke = () => service.call('POST', `/v1/keys/${key.id}/revoke`, { token })
  await fresh(service)
  await runtime.transaction().execute(async (trx) => {
    await sql`SELECT FROM keys FOR UPDATE`.execute(trx)
    t.match(await revoke(), { status: 503 }, 'and no revocation is acknowledged')
  })
  t.match(await revoke(), { status: 200, body: { propagation: { complete: true } } })
  // Of each of the two logins, as of any: the sessions that have it, and its own password and settings.
  for (const url of [database.runtime, database.control]) {
    const own = openDatabase({ url, size: 1, timeoutMs: 10_000, name: 'test' })
    t.teardown(() => own.destroy())
    const end = (whose: string) => sql<{ ended: boolean }>`SELECT pg_terminate_backend(pid) AS ended FROM pg_stat_activity WHERE datname = current_database() AND usename ${sql.raw(whose)} AND pid <> pg_backend_pid()`.execute(own)
    const { rows: ended } = await end('= current_user')
    t.ok(ended.length > 0)
    await t.rejects(end('<> current_user'), DENIED)
    await t.rejects(own.transaction().execute(async (trx) => {
      await sql`ALTER ROLE CURRENT_USER SET synchronous_commit = off`.execute(trx)
      await sql`ALTER ROLE CURRENT_USER PASSWORD 'another'`.execute(trx)
      throw new Error('undone: other tests have this login')
    }), /undone/)
  }
  await fresh(service)
})

t.test('with the root secret as well: JWTs are signed, and a key that is there gets a secret of one\'s own', async (t) => {
  const service = await startService(t, { PUBLIC_URL: 'https://keys.example.com' })
  const { run, runtime } = login(t, service)
  const roots = rootsOf(service.config.ROOT_SECRETS!)
  const { key, plaintext_key } = await service.issue()
  t.match(await service.verify(plaintext_key), { valid: true })
  const id = parsePublicId('mecha', key.id)!
  const made = makeToken(service.config.KEY_PREFIX, id, roots[0])
  const hash = await hashSecret({ id, subject: 'sales^acmecorp', secret: made.secret }, { root: roots[0], version: 2 }, 'high-entropy')
  await run(`UPDATE keys SET hash = '${hash}', pepper_root = '${roots[0].id}/2' WHERE id = '${id}'`)
  await applied(service.database)
  t.match(await service.verify(made.text), { valid: true, key_id: key.id })
  const signing = openSigningKey(await runtime.selectFrom('signing_keys').selectAll().executeTakeFirstOrThrow(), roots)
  const forged = await new SignJWT({ key_id: key.id }).setProtectedHeader({ alg: 'EdDSA', kid: signing.kid, typ: 'at+jwt' }).setIssuer('https://keys.example.com').sign(signing.privateKey)
  await t.resolves(jwtVerify(forged, createLocalJWKSet((await service.call('GET', '/.well-known/jwks.json')).body)))
  t.same(await service.verify(forged), { valid: false, code: 'malformed' }, 'verify knows no JWT')
})

t.test('without the root secret, a hash that it writes verifies nothing', async (t) => {
  const service = await startService(t)
  const { run } = login(t, service)
  const roots = rootsOf(service.config.ROOT_SECRETS!)
  const { key } = await service.issue()
  const id = parsePublicId('mecha', key.id)!
  const guessed = rootsOf([randomBytes(32).toString('base64url')])
  const made = makeToken(service.config.KEY_PREFIX, id, roots[0])
  const hash = await hashSecret({ id, subject: 'sales^acmecorp', secret: made.secret }, { root: guessed[0], version: 2 }, 'high-entropy')
  await run(`UPDATE keys SET hash = '${hash}' WHERE id = '${id}'`)
  await applied(service.database)
  t.same(await service.verify(made.text), { valid: false, code: 'unknown' })
})

t.test('the runtime role can verify, note use and renew a hash, and nothing else', async (t) => {
  const service = await startService(t)
  await service.issue()
  const { runtime } = login(t, service)
  const run = (statement: string) => sql.raw(statement).execute(runtime)
  const copied = 'id, kind, org_id, mecha, hash, tag_root, pepper_root, created_at, created_by'
  for (const statement of [
    `INSERT INTO keys (${copied}) SELECT gen_random_uuid(), ${copied.slice(4)} FROM keys`,
    'DELETE FROM keys', 'TRUNCATE keys',
    ...['id', 'mecha', 'org_id', 'kind', 'scopes', 'metadata', 'enabled', 'expires_at', 'revoked_at', 'revoked_by', 'tag_root', 'rotated_to', 'created_at'].map((column) => `UPDATE keys SET ${column} = ${column}`),
    'SELECT * FROM events', "INSERT INTO events (at, type, key_id, kind, actor, request_id, address) VALUES (now(), 'x', gen_random_uuid(), 'mecha', 'x', 'x', 'x')",
    'SELECT * FROM mechas', 'SELECT * FROM idempotency_keys', "INSERT INTO mechas (handle, org_id) VALUES ('a^b', 'c')",
    'UPDATE nonces SET key_id = key_id', 'SELECT * FROM nonce_sweeps', 'UPDATE nonce_sweeps SET swept_until = now()', 'UPDATE nonces SET digest = digest', 'TRUNCATE nonces',
    'UPDATE key_usage SET first_used_at = first_used_at', 'DELETE FROM key_usage',
    'UPDATE key_refusals SET key_id = key_id', 'DELETE FROM key_refusals', 'TRUNCATE key_refusals',
    'INSERT INTO signing_keys SELECT * FROM signing_keys', 'UPDATE signing_keys SET sealed = sealed', 'UPDATE signing_keys SET signs_from = signs_from', 'DELETE FROM signing_keys', 'TRUNCATE signing_keys',
    'INSERT INTO token_status (idx) VALUES (7)', 'UPDATE token_status SET key_id = NULL', 'DELETE FROM token_status',
    'UPDATE database_identity SET lost_at = NULL', 'UPDATE database_identity SET verified_in = verified_in', 'DELETE FROM database_identity', "SELECT accept_database('x')",
    'INSERT INTO changes (key_id) VALUES (NULL)', 'UPDATE changes SET key_id = key_id',
    'CREATE TABLE mine (x int)', 'DELETE FROM kysely_migration', 'ALTER TABLE keys DISABLE TRIGGER ALL',
  ])
    await t.rejects(run(statement), DENIED, statement)
  for (const statement of ['SELECT * FROM signing_keys', 'SELECT * FROM token_status', "SELECT token_status_place(id) FROM keys WHERE kind = 'mecha'"]) await t.resolves(run(statement), statement)
  await t.rejects(run('SELECT token_status_place(gen_random_uuid())'), { code: '23503' }, 'no place for what is no key')
  await t.resolves(run('SELECT * FROM keys'))
  await t.resolves(run('UPDATE keys SET hash = hash, pepper_root = pepper_root'))
})

t.test('the runtime role ends a key by the hash that its secret was proved against, and by no other', async (t) => {
  const service = await startService(t)
  await service.issue()
  await service.issue()
  const { runtime, owner } = login(t, service)
  const [mine, other] = await owner.selectFrom('keys').select(['id', 'hash']).orderBy('id').execute()
  const end = async (id: string, hash: string | null) => (await sql<{ over: boolean }>`SELECT revoke_by_holder(${id}, ${hash}, 'request', '203.0.113.7') AS over`.execute(runtime)).rows[0]!.over
  t.equal(await end(mine!.id, other!.hash), false)
  t.equal(await end(mine!.id, null), false)
  t.match(await owner.selectFrom('keys').select('revoked_at').execute(), [{ revoked_at: null }, { revoked_at: null }])
  t.equal(await end(mine!.id, mine!.hash), true)
  t.equal(await end(mine!.id, mine!.hash), true, 'it is over')
  t.match(await owner.selectFrom('keys').select(['revoked_at', 'revoked_by']).orderBy('id').execute(), [{ revoked_at: Date, revoked_by: 'holder' }, { revoked_at: null }])
  const events = await owner.selectFrom('events').selectAll().where('type', '=', 'key.revoked').execute()
  t.match(events, [{ key_id: mine!.id, org_id: 'acme', kind: 'mecha', mecha: 'sales^acmecorp', actor: 'holder', request_id: 'request', address: '203.0.113.7' }])
  t.equal(events.length, 1)
})

t.test('who finds a function or a table under another name before ours cannot make the owner use it', async (t) => {
  const service = await startService(t)
  await service.issue()
  const { runtime, owner } = login(t, service)
  // A temporary table is looked at first unless the function says otherwise.
  await sql`CREATE TEMPORARY TABLE events (at timestamptz, type text, org_id text, key_id uuid, kind text, mecha text, actor text, request_id text, address text, data jsonb)`.execute(runtime)
  await sql`CREATE TEMPORARY TABLE keys AS SELECT * FROM public.keys`.execute(runtime)
  await sql`SELECT revoke_by_holder(id, hash, 'x', 'x') FROM public.keys`.execute(runtime)
  t.match(await owner.selectFrom('keys').select('revoked_by').execute(), [{ revoked_by: 'holder' }])
  t.equal((await owner.selectFrom('events').selectAll().where('type', '=', 'key.revoked').execute()).length, 1)
  t.match((await sql`SELECT count(*)::int AS mine FROM pg_temp.events`.execute(runtime)).rows, [{ mine: 0 }])
})
