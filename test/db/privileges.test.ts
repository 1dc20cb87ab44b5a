import { randomBytes } from 'node:crypto'
import { sql, type Kysely } from 'kysely'
import t, { type Test } from 'tap'
import { openDatabase } from '../../src/db/pool.js'
import type { Database } from '../../src/db/tables.js'
import { startService, type Service } from '../helpers/service.js'

const open = (url: string): Kysely<Database> => openDatabase({ url, size: 1, timeoutMs: 10_000, name: 'test' })

async function logins(t: Test, service: Service) {
  const [control, runtime] = [open(service.database.control), open(service.database.runtime)]
  t.teardown(() => Promise.all([control.destroy(), runtime.destroy()]))
  return { control, runtime, owner: service.database.db }
}

const denied = { code: '42501' }

t.test('the runtime role can verify, note use and renew a hash, and nothing else', async (t) => {
  const service = await startService(t)
  await service.issue()
  const { runtime } = await logins(t, service)
  const run = (statement: string) => sql.raw(statement).execute(runtime)
  const copied = 'id, kind, org_id, mecha, hash, tag_root, pepper_root, created_at, created_by'
  for (const statement of [
    `INSERT INTO keys (${copied}) SELECT gen_random_uuid(), ${copied.slice(4)} FROM keys`,
    'DELETE FROM keys', 'TRUNCATE keys',
    ...['id', 'mecha', 'org_id', 'kind', 'scopes', 'metadata', 'enabled', 'expires_at', 'revoked_at', 'revoked_by', 'tag_root', 'rotated_to', 'created_at'].map((column) => `UPDATE keys SET ${column} = ${column}`),
    'SELECT * FROM events', "INSERT INTO events (at, type, key_id, kind, actor, request_id, address) VALUES (now(), 'x', gen_random_uuid(), 'mecha', 'x', 'x', 'x')",
    'SELECT * FROM mechas', 'SELECT * FROM idempotency_keys', "INSERT INTO mechas (handle, org_id) VALUES ('a^b', 'c')",
    "UPDATE nonces SET key_id = key_id", 'SELECT * FROM nonce_sweeps', 'UPDATE nonce_sweeps SET swept_until = now()', 'UPDATE nonces SET digest = digest', 'TRUNCATE nonces',
    'UPDATE key_usage SET first_used_at = first_used_at', 'DELETE FROM key_usage',
    'UPDATE key_refusals SET key_id = key_id', 'DELETE FROM key_refusals', 'TRUNCATE key_refusals',
    'INSERT INTO signing_keys SELECT * FROM signing_keys', 'UPDATE signing_keys SET sealed = sealed', 'UPDATE signing_keys SET signs_from = signs_from', 'DELETE FROM signing_keys', 'TRUNCATE signing_keys',
    'INSERT INTO token_status (idx) VALUES (7)', 'UPDATE token_status SET key_id = NULL', 'DELETE FROM token_status',
    'UPDATE database_identity SET lost_at = NULL', 'DELETE FROM database_identity', "SELECT accept_database('x')",
    'INSERT INTO changes (key_id) VALUES (NULL)', 'UPDATE changes SET key_id = key_id',
    'CREATE TABLE mine (x int)', 'DELETE FROM kysely_migration', 'ALTER TABLE keys DISABLE TRIGGER ALL',
  ])
    await t.rejects(run(statement), denied, statement)
  for (const statement of ['SELECT * FROM signing_keys', 'SELECT * FROM token_status', "SELECT token_status_place(id) FROM keys WHERE kind = 'mecha'"]) await t.resolves(run(statement), statement)
  await t.rejects(run('SELECT token_status_place(gen_random_uuid())'), { code: '23503' }, 'no place for what is no key')
  await t.resolves(run('SELECT * FROM keys'))
  await t.resolves(run('UPDATE keys SET hash = hash, pepper_root = pepper_root'))
})

t.test('the runtime role ends a key by the hash that its secret was proved against, and by no other', async (t) => {
  const service = await startService(t)
  await service.issue()
  await service.issue()
  const { runtime, owner } = await logins(t, service)
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
  const { runtime, owner } = await logins(t, service)
  // A temporary table is looked at first unless the function says otherwise.
  await sql`CREATE TEMPORARY TABLE events (at timestamptz, type text, org_id text, key_id uuid, kind text, mecha text, actor text, request_id text, address text, data jsonb)`.execute(runtime)
  await sql`CREATE TEMPORARY TABLE keys AS SELECT * FROM public.keys`.execute(runtime)
  await sql`SELECT revoke_by_holder(id, hash, 'x', 'x') FROM public.keys`.execute(runtime)
  t.match(await owner.selectFrom('keys').select('revoked_by').execute(), [{ revoked_by: 'holder' }])
  t.equal((await owner.selectFrom('events').selectAll().where('type', '=', 'key.revoked').execute()).length, 1)
  t.match((await sql`SELECT count(*)::int AS mine FROM pg_temp.events`.execute(runtime)).rows, [{ mine: 0 }])
})

t.test('the control role cannot delete a key, re-point it, touch the audit trail or change the tables', async (t) => {
  const service = await startService(t)
  await service.issue()
  const { control } = await logins(t, service)
  for (const statement of [
    'DELETE FROM keys', 'UPDATE keys SET mecha = mecha', 'UPDATE keys SET org_id = org_id', 'UPDATE keys SET id = id', 'UPDATE keys SET scopes = scopes', 'UPDATE keys SET kind = kind',
    'UPDATE keys SET created_by = created_by', 'UPDATE mechas SET org_id = org_id', 'DELETE FROM mechas',
    "UPDATE events SET actor = 'nobody'", 'DELETE FROM events', 'TRUNCATE events', 'INSERT INTO key_usage SELECT id, now(), now() FROM keys', 'UPDATE key_usage SET last_used_at = now()', 'UPDATE key_usage SET last_used_by = NULL',
    "INSERT INTO key_refusals SELECT id, now(), 'revoked' FROM keys", 'UPDATE key_refusals SET last_refused_at = now()',
    'UPDATE signing_keys SET kid = kid', 'UPDATE signing_keys SET alg = alg', 'UPDATE signing_keys SET signs_from = signs_from', 'TRUNCATE signing_keys',
    'INSERT INTO token_status (idx) VALUES (7)', 'UPDATE token_status SET idx = idx', 'DELETE FROM token_status', 'SELECT token_status_place(id) FROM keys',
    'SELECT * FROM nonces', 'SELECT * FROM nonce_sweeps', "SELECT take_nonce(id, NULL, '', now(), 1, 1) FROM keys", "SELECT revoke_by_holder(id, hash, 'x', 'x') FROM keys",
    'UPDATE database_identity SET lost_at = NULL', 'DELETE FROM database_identity', "SELECT accept_database('x')", "SELECT recall_feed(gen_random_uuid(), 'x', '1', 1)",
    "SELECT confirm_feed(gen_random_uuid(), '0123456789abcdef', pg_current_snapshot(), 'x', 1)", "SELECT leave_feed(gen_random_uuid(), 'x')", 'SELECT sweep_changes(pg_current_snapshot())',
    'CREATE TABLE mine (x int)', 'DROP TABLE keys', 'ALTER TABLE events DISABLE TRIGGER ALL',
  ])
    await t.rejects(sql.raw(statement).execute(control), denied, statement)
})

t.test('events can be neither changed nor deleted, not by the owner either', async (t) => {
  const service = await startService(t)
  await service.issue()
  const { owner } = await logins(t, service)
  for (const statement of ["UPDATE events SET actor = 'nobody'", 'DELETE FROM events', 'TRUNCATE events', 'DELETE FROM events WHERE false'])
    await t.rejects(sql.raw(statement).execute(owner), /events can be neither changed nor deleted/, statement)
  t.same((await sql<{ type: string }>`SELECT type FROM events ORDER BY position`.execute(owner)).rows, [{ type: 'signing_key.created' }, { type: 'key.issued' }])
})

t.test('nothing but an argon2id PHC string can be stored as a hash', async (t) => {
  const service = await startService(t)
  const { plaintext_key } = await service.issue()
  const { owner } = await logins(t, service)
  const { hash } = await owner.selectFrom('keys').select('hash').executeTakeFirstOrThrow()
  const sha256 = randomBytes(32).toString('hex')
  for (const wrong of ['', plaintext_key, sha256, hash.replace('argon2id', 'argon2i'), hash.replace('v=19', 'v=16'), hash.slice(0, -1), `${hash}${plaintext_key}`, `${plaintext_key}${hash}`, hash.replace(/\$[^$]+\$([^$]+)$/, '$$c2hvcnQ$$$1')])
    await t.rejects(owner.updateTable('keys').set({ hash: wrong }).execute(), { code: '23514' }, wrong.slice(0, 20))
  await t.resolves(owner.updateTable('keys').set({ hash }).execute())
})

t.test('a key is of its Mecha\'s organization, a revocation has an author, and a handle has its form, whoever writes', async (t) => {
  const service = await startService(t)
  await service.issue()
  const { owner } = await logins(t, service)
  await t.rejects(owner.updateTable('keys').set({ org_id: 'rival' }).execute(), { code: '23503' })
  await t.rejects(owner.updateTable('keys').set({ mecha: null }).execute(), { code: '23514' })
  await t.rejects(owner.updateTable('keys').set({ revoked_at: new Date() }).execute(), { code: '23514' })
  await t.rejects(owner.insertInto('mechas').values({ handle: 'Nobody', org_id: 'acme' }).execute(), { code: '23514' })
})

t.test('listing and verify read by an index', async (t) => {
  const service = await startService(t)
  await service.issue()
  const { owner } = await logins(t, service)
  await sql`INSERT INTO keys (id, kind, org_id, mecha, hash, tag_root, pepper_root, created_at, created_by)
    SELECT gen_random_uuid(), kind, org_id, mecha, hash, tag_root, pepper_root, created_at - n * interval '1 second', created_by
    FROM keys, generate_series(1, 20000) AS n`.execute(owner)
  await sql`ANALYZE keys`.execute(owner)
  const plan = async (query: ReturnType<typeof sql>) => JSON.stringify((await sql`EXPLAIN ${query}`.execute(owner)).rows)
  t.match(await plan(sql`SELECT * FROM keys WHERE id = '01890a5d-ac96-774b-bcce-b302099a8057'`), /Index Scan using keys_pkey/)
  const page = sql`AND (created_at, id) < (now(), '01890a5d-ac96-774b-bcce-b302099a8057') ORDER BY created_at DESC, id DESC LIMIT 50`
  const byMecha = await plan(sql`SELECT * FROM keys WHERE org_id = 'acme' AND kind = 'mecha' AND mecha = 'sales^acmecorp' ${page}`)
  const byOrg = await plan(sql`SELECT * FROM keys WHERE org_id = 'acme' AND kind = 'mecha' ${page}`)
  for (const text of [byMecha, byOrg]) {
    t.match(text, /Index Scan/)
    t.notMatch(text, /Sort|Seq Scan/)
  }
})
