import { randomBytes } from 'node:crypto'
import { sql, type Kysely } from 'kysely'
import t, { type Test } from 'tap'
import { openDatabase } from '../../src/db/pool.js'
import type { Database } from '../../src/db/tables.js'
import { startService, type Service } from '../helpers/service.js'

const open = (url: string): Kysely<Database> => openDatabase({ url, size: 1, timeoutMs: 10_000, name: 'test' })

function logins(t: Test, service: Service) {
  const control = open(service.database.control)
  t.teardown(() => control.destroy())
  return { control, owner: service.database.db }
}

const denied = { code: '42501' }

t.test('the control role cannot delete a key, re-point it, touch the audit trail or change the tables', async (t) => {
  const service = await startService(t)
  await service.issue()
  const { control } = logins(t, service)
  for (const statement of [
    'DELETE FROM keys', 'UPDATE keys SET mecha = mecha', 'UPDATE keys SET org_id = org_id', 'UPDATE keys SET id = id', 'UPDATE keys SET scopes = scopes', 'UPDATE keys SET kind = kind',
    'UPDATE keys SET created_by = created_by', 'UPDATE mechas SET org_id = org_id', 'DELETE FROM mechas',
    "UPDATE events SET actor = 'nobody'", 'DELETE FROM events', 'TRUNCATE events', 'INSERT INTO key_usage SELECT id, now(), now() FROM keys', 'UPDATE key_usage SET last_used_at = now()', 'UPDATE key_usage SET last_used_by = NULL',
    "INSERT INTO key_refusals SELECT id, now(), 'revoked' FROM keys", 'UPDATE key_refusals SET last_refused_at = now()',
    'UPDATE signing_keys SET kid = kid', 'UPDATE signing_keys SET alg = alg', 'UPDATE signing_keys SET signs_from = signs_from', 'TRUNCATE signing_keys',
    'INSERT INTO token_status (idx) VALUES (7)', 'UPDATE token_status SET idx = idx', 'DELETE FROM token_status', 'SELECT token_status_place(id) FROM keys',
    'SELECT * FROM nonces', 'SELECT * FROM nonce_sweeps', "SELECT take_nonce(id, NULL, '', now(), 1, 1) FROM keys", "SELECT revoke_by_holder(id, hash, 'x', 'x') FROM keys",
    'UPDATE database_identity SET lost_at = NULL', 'DELETE FROM database_identity', "SELECT accept_database('x')", "SELECT recall_feed(gen_random_uuid(), 'x', '1', 1)", 'SELECT verify_history()',
    "SELECT confirm_feed(gen_random_uuid(), '0123456789abcdef', pg_current_snapshot(), 'x', 1)", "SELECT leave_feed(gen_random_uuid(), 'x')", 'SELECT sweep_changes(pg_current_snapshot())', "SELECT sweep_changes(pg_current_snapshot(), '0', 1)",
    'CREATE TABLE mine (x int)', 'DROP TABLE keys', 'ALTER TABLE events DISABLE TRIGGER ALL',
  ])
    await t.rejects(sql.raw(statement).execute(control), denied, statement)
})

t.test('events can be neither changed nor deleted, not by the owner either', async (t) => {
  const service = await startService(t)
  await service.issue()
  const { owner } = logins(t, service)
  for (const statement of ["UPDATE events SET actor = 'nobody'", 'DELETE FROM events', 'TRUNCATE events', 'DELETE FROM events WHERE false'])
    await t.rejects(sql.raw(statement).execute(owner), /events can be neither changed nor deleted/, statement)
  t.same((await sql<{ type: string }>`SELECT type FROM events ORDER BY position`.execute(owner)).rows, [{ type: 'signing_key.created' }, { type: 'key.issued' }])
})

t.test('nothing but an argon2id PHC string can be stored as a hash', async (t) => {
  const service = await startService(t)
  const { plaintext_key } = await service.issue()
  const { owner } = logins(t, service)
  const { hash } = await owner.selectFrom('keys').select('hash').executeTakeFirstOrThrow()
  const sha256 = randomBytes(32).toString('hex')
  for (const wrong of ['', plaintext_key, sha256, hash.replace('argon2id', 'argon2i'), hash.replace('v=19', 'v=16'), hash.slice(0, -1), `${hash}${plaintext_key}`, `${plaintext_key}${hash}`, hash.replace(/\$[^$]+\$([^$]+)$/, '$$c2hvcnQ$$$1')])
    await t.rejects(owner.updateTable('keys').set({ hash: wrong }).execute(), { code: '23514' }, wrong.slice(0, 20))
  await t.resolves(owner.updateTable('keys').set({ hash }).execute())
})

t.test('a key is of its Mecha\'s organization, a revocation has an author, and a handle has its form, whoever writes', async (t) => {
  const service = await startService(t)
  await service.issue()
  const { owner } = logins(t, service)
  await t.rejects(owner.updateTable('keys').set({ org_id: 'rival' }).execute(), { code: '23503' })
  await t.rejects(owner.updateTable('keys').set({ mecha: null }).execute(), { code: '23514' })
  await t.rejects(owner.updateTable('keys').set({ revoked_at: new Date() }).execute(), { code: '23514' })
  await t.rejects(owner.insertInto('mechas').values({ handle: 'Nobody', org_id: 'acme' }).execute(), { code: '23514' })
})

t.test('listing and verify read by an index', async (t) => {
  const service = await startService(t)
  await service.issue()
  const { owner } = logins(t, service)
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
