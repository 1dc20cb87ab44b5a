/** With the control plane's database login, and not with the service: what the database refuses, whoever holds that login. */

import { randomBytes } from 'node:crypto'
import { sql, type Kysely } from 'kysely'
import t, { type Test } from 'tap'
import { openDatabase } from '../../src/db/pool.js'
import type { Database } from '../../src/db/tables.js'
import { rotateSigningKeys } from '../../src/control/signing-keys/signing-keys.js'
import { hashSecret } from '../../src/credentials/hash.js'
import { newId, parsePublicId } from '../../src/credentials/id.js'
import { rootsOf, type Root } from '../../src/credentials/roots.js'
import { KEEP, LEAD } from '../../src/credentials/signing-key.js'
import { makeToken } from '../../src/credentials/token.js'
import { applied } from '../helpers/database.js'
import { exchange } from '../helpers/oauth.js'
import { rightsOf } from '../helpers/rights.js'
import { startService, type Service } from '../helpers/service.js'

const DENIED = { code: '42501' }

/** A right of a new kind belongs into `docs/security.md`, with a test of what it is good for. */
const RIGHTS: readonly string[] = [
  'USAGE public',
  ...['change_horizon', 'changes', 'crews', 'database_identity', 'erasures', 'events', 'farewells', 'idempotency_keys', 'key_refusals', 'key_usage', 'keys', 'kysely_migration', 'mechas', 'replicas', 'signing_keys', 'token_status'].map((table) => `SELECT ${table}`),
  ...['handle', 'org_id'].map((column) => `INSERT mechas.${column}`),
  ...['id', 'kind', 'org_id', 'mecha', 'name', 'scopes', 'metadata', 'hash', 'tag_root', 'pepper_root', 'created_at', 'created_by', 'expires_at', 'rotated_from'].map((column) => `INSERT keys.${column}`),
  ...['name', 'metadata', 'hash', 'tag_root', 'pepper_root', 'enabled', 'expires_at', 'revoked_at', 'revoked_by', 'revoke_reason', 'rotated_to'].map((column) => `UPDATE keys.${column}`),
  ...['at', 'type', 'org_id', 'key_id', 'kind', 'mecha', 'actor', 'request_id', 'address', 'data'].map((column) => `INSERT events.${column}`),
  'INSERT idempotency_keys', 'DELETE idempotency_keys',
  'INSERT signing_keys', 'UPDATE signing_keys.sealed', 'UPDATE signing_keys.root', 'DELETE signing_keys',
  'UPDATE token_status.key_id',
  // To lock rows with: triggers keep every value as it is.
  'UPDATE mechas.created_at', 'UPDATE idempotency_keys.expires_at',
  // To read and to check with.
  ...['current_identity', 'current_timeline', 'current_history', 'restore_hold', 'writes_as_control', 'within_transaction', 'refusal_of_end', 'late_events', 'is_being_erased', 'take_slot', 'count_living_keys', 'issue_key', 'rotate_key', 'revoke_key'].map((name) => `EXECUTE ${name}`),
]

/** Runs statements in one transaction of the control plane's login. */
type Write = (...statements: string[]) => Promise<void>

async function login(t: Test): Promise<{ service: Service; write: Write; owner: Kysely<Database> }> {
  const service = await startService(t)
  const control = openDatabase({ url: service.database.control, size: 1, timeoutMs: 10_000, name: 'test' })
  t.teardown(() => control.destroy())
  const write: Write = (...statements) =>
    control.transaction().execute(async (trx) => {
      for (const statement of statements) await sql.raw(statement).execute(trx)
    })
  return { service, write, owner: service.database.db }
}

/** An event that the service would write of a key of acme, but for what is said otherwise. */
function event(id: string, told: Partial<Record<'type' | 'at' | 'actor' | 'org_id' | 'mecha' | 'kind' | 'data', string>> = {}): string {
  const { type = 'key.updated', at = 'now()', actor = 'builtin:mallory', org_id = 'acme', mecha = 'sales^acmecorp', kind = 'mecha', data = '{}' } = told
  return `INSERT INTO events (at, type, org_id, key_id, kind, mecha, actor, request_id, address, data)
    VALUES (${at}, '${type}', '${org_id}', '${id}', '${kind}', '${mecha}', '${actor}', 'request', '203.0.113.7', '${data}')`
}
const revoke = (id: string, by = 'builtin:mallory') => `UPDATE keys SET revoked_at = now(), revoked_by = '${by}' WHERE id = '${id}'`
const rename = (id: string, name = 'other') => `UPDATE keys SET name = '${name}' WHERE id = '${id}'`
const insert = (columns: string, values: string, from: string) => `INSERT INTO keys (${columns}) SELECT ${values} FROM keys WHERE id = '${from}'`
const COPIED = 'kind, org_id, mecha, hash, tag_root, pepper_root, created_by'

async function issued(service: Service): Promise<{ id: string; plaintext: string }> {
  const { key, plaintext_key } = await service.issue()
  return { id: parsePublicId('mecha', key.id)!, plaintext: plaintext_key }
}

t.test('it has the rights that the service needs, and no other', async (t) => {
  const { owner } = await login(t)
  t.same(await rightsOf('mecha_keys_control', owner), RIGHTS.toSorted())
})

t.test('an event tells of a change that its own transaction made, as it was made, and once', async (t) => {
  const { service, write, owner } = await login(t)
  const { id } = await issued(service)
  const { id: other } = await issued(service)
  for (const [what, ...statements] of [
    ['of nothing', event(id)],
    ['of no key', event('01890a5d-ac96-774b-bcce-b302099a8057')],
    ['of another key', rename(other), event(id)],
    ['of what changed nothing', `UPDATE keys SET name = name WHERE id = '${id}'`, event(id)],
    ['of what was only locked', `SELECT FROM keys WHERE id = '${id}' FOR UPDATE`, event(id)],
    ['of another kind of change', rename(id), event(id, { type: 'key.revoked' })],
    ['of the same one twice', rename(id), event(id), event(id)],
    ['of an issue that was told', rename(id), event(id), event(id, { type: 'key.issued', actor: 'builtin:alice' })],
    ['of a type that there is not', rename(id), event(id, { type: 'key.forgiven' })],
    ['by somebody else than the row says', revoke(id), event(id, { type: 'key.revoked', actor: 'builtin:bob' })],
    ['for another organization', rename(id), event(id, { org_id: 'rival' })],
    ['of another Mecha', rename(id), event(id, { mecha: 'buyer^acmecorp' })],
    ['of a gateway', revoke(id), event(id, { type: 'gateway.revoked', kind: 'gateway' })],
    ['of a signing key', `INSERT INTO events (at, type, kind, actor, request_id, address, data) SELECT now(), 'signing_key.created', 'signing_key', 'service', 'x', 'x', jsonb_build_object('kid', kid) FROM signing_keys`],
    ['at a position', rename(id), event(id).replace('(at,', '(position, at,').replace('VALUES (', 'OVERRIDING SYSTEM VALUE VALUES (1000000, ')],
  ] as const)
    await t.rejects(write(...statements), DENIED, what)
  t.same((await owner.selectFrom('events').select('type').orderBy('position').execute()).map(({ type }) => type), ['signing_key.created', 'key.issued', 'key.issued'])
  await t.resolves(write(rename(id), event(id)), 'and of what was changed, it is written')
  await t.resolves(write(revoke(id), event(id, { type: 'key.revoked' })))
})

t.test('no change of a key stays without its event', async (t) => {
  const { service, write, owner } = await login(t)
  const { id } = await issued(service)
  const made = insert(`id, created_at, ${COPIED}`, `gen_random_uuid(), now(), ${COPIED}`, id)
  for (const [what, ...statements] of [
    ['a key', made],
    ['a change', rename(id)],
    ['an end', `UPDATE keys SET expires_at = now() + interval '1 hour' WHERE id = '${id}'`],
    ['a revocation', revoke(id)],
    ['a revocation that is told as a change', rename(id), event(id), revoke(id)],
    ['another secret', `UPDATE keys SET hash = overlay(hash placing 'AAAA' from length(hash) - 3) WHERE id = '${id}'`],
    ['a rename that comes later', rename(id), 'SET CONSTRAINTS ALL IMMEDIATE', event(id)],
  ] as const)
    await t.rejects(write(...statements), DENIED, what)
  t.match(await owner.selectFrom('keys').selectAll().execute(), [{ id, name: null, revoked_at: null, expires_at: null }])
})

t.test('times are the database\'s: of an event, of a key and of a revocation', async (t) => {
  const { service, write, owner } = await login(t)
  const { id } = await issued(service)
  const { rows: [before] } = await sql<{ now: Date }>`SELECT now()`.execute(owner)
  const past = "'2001-01-01'"
  const key = '01890a5d-ac96-774b-bcce-b302099a8057'
  await write(rename(id), event(id, { at: past }))
  await write(revoke(id).replace('now()', past), event(id, { type: 'key.revoked', at: "'2999-01-01'" }))
  await write(insert(`id, created_at, ${COPIED}`, `'${key}', ${past}, ${COPIED}`, id), event(key, { type: 'key.issued', actor: 'builtin:alice', at: past }))
  const times = [
    ...(await owner.selectFrom('events').select('at').orderBy('position').offset(2).execute()).map(({ at }) => at),
    (await owner.selectFrom('keys').select('created_at').where('id', '=', key).executeTakeFirstOrThrow()).created_at,
    (await owner.selectFrom('keys').select('revoked_at').where('id', '=', id).executeTakeFirstOrThrow()).revoked_at!,
  ]
  t.equal(times.length, 5)
  for (const time of times) t.ok(Math.abs(time.getTime() - before!.now.getTime()) < 60_000, time.toISOString())
})

t.test('what has ended is not lengthened, and what is rotated is so once', async (t) => {
  const { service, write, owner } = await login(t)
  const token = await service.token()
  const end = (id: string, to: string) => `UPDATE keys SET expires_at = ${to} WHERE id = '${id}'`
  const [expired, revoked, rotated, living, used] = [await issued(service), await issued(service), await issued(service), await issued(service), await issued(service)]
  await owner.updateTable('keys').set({ expires_at: new Date(Date.now() - 60_000) }).where('id', '=', expired.id).execute()
  await write(revoke(revoked.id), event(revoked.id, { type: 'key.revoked' }))
  const publicId = (await service.call('GET', '/v1/keys', { token })).body.keys.find((key: any) => parsePublicId('mecha', key.id) === rotated.id).id
  const successor = await service.call('POST', `/v1/keys/${publicId}/rotate`, { token, body: { overlap_seconds: 600 } })
  t.equal(successor.status, 201)
  await service.verify(used.plaintext)

  for (const [what, id, statement] of [
    ['expired, to later', expired.id, end(expired.id, "'2999-01-01'")],
    ['expired, to never', expired.id, end(expired.id, 'NULL')],
    ['expired, by a new name', expired.id, rename(expired.id)],
    ['rotated, past its overlap', rotated.id, end(rotated.id, "expires_at + interval '1 second'")],
    ['rotated, to never', rotated.id, end(rotated.id, 'NULL')],
    ['ended long ago', living.id, end(living.id, "now() - interval '2 hours'")],
    ['rotated again', rotated.id, `UPDATE keys SET rotated_to = '${living.id}' WHERE id = '${rotated.id}'`],
    ['rotated to what was there', living.id, `UPDATE keys SET rotated_to = '${used.id}', expires_at = now() + interval '1 hour' WHERE id = '${living.id}'`],
    ['the secret of a key that was used', used.id, `UPDATE keys SET hash = overlay(hash placing 'AAAA' from length(hash) - 3) WHERE id = '${used.id}'`],
  ] as const) {
    await t.rejects(write(statement, event(id)), DENIED, what)
    await t.rejects(write(statement, event(id, { type: what.includes('secret') ? 'key.secret_replaced' : 'key.rotated' })), DENIED, what)
  }
  await t.rejects(write(end(revoked.id, "'2999-01-01'"), event(revoked.id)), /a revoked key cannot be changed/)
  const copy = '01890a5d-ac96-774b-bcce-b302099a8057'
  await t.rejects(write(insert(`id, created_at, rotated_from, ${COPIED}`, `'${copy}', now(), id, ${COPIED}`, living.id), event(copy, { type: 'key.issued', actor: 'builtin:alice' })), DENIED, 'a successor of what was not rotated')
  await t.resolves(write(revoke(expired.id), event(expired.id, { type: 'key.revoked' })), 'an expired key can be revoked')
  await t.resolves(write(end(rotated.id, "expires_at - interval '1 second'"), event(rotated.id)), 'a rotated key can end sooner')
})

t.test('a key is made living and not rotated; rows that are only locked do not change', async (t) => {
  const { service, write } = await login(t)
  const { id } = await issued(service)
  await service.call('POST', '/v1/keys', { token: await service.token(), body: { mecha: 'sales^acmecorp' }, headers: { 'idempotency-key': 'x' } })
  for (const column of ['enabled', 'revoked_at', 'revoked_by', 'revoke_reason', 'rotated_to'])
    await t.rejects(write(insert(`id, created_at, ${column}, ${COPIED}`, `gen_random_uuid(), now(), ${column}, ${COPIED}`, id)), DENIED, column)
  for (const statement of [
    'UPDATE mechas SET created_at = created_at', "INSERT INTO crews (crew, org_id) VALUES ('mine', 'acme')", "UPDATE crews SET org_id = 'acme'", 'DELETE FROM crews', "INSERT INTO mechas (handle, org_id, created_at) VALUES ('a^b', 'c', now())",
    'UPDATE idempotency_keys SET expires_at = now()', 'DELETE FROM idempotency_keys',
    `INSERT INTO idempotency_keys VALUES ('\\x00', '\\x00', '${id}', now() + interval '1 day')`,
    'UPDATE replicas SET snapshot = snapshot', 'DELETE FROM replicas', 'DELETE FROM changes',
  ])
    await t.rejects(write(statement), DENIED, statement)
  for (const table of ['mechas', 'idempotency_keys', 'keys']) await t.resolves(write(`SELECT FROM ${table} FOR UPDATE`), table)
})

t.test('issue_key, which has the rights of the owner, keeps to the rules by itself', async (t) => {
  const { service, write, owner } = await login(t)
  const { id } = await issued(service)
  await service.issue({ mecha: 'sales^rivalcrew' }, { org: 'rival' })
  await owner.insertInto('crews').values({ crew: 'reserved', org_id: 'rival' }).execute()
  const given = {
    key_id: 'gen_random_uuid()', key_hash: `(SELECT hash FROM keys WHERE id = '${id}')`, key_tag_root: "'x'", key_pepper_root: "'x'", of_org: "'acme'", of_mecha: "'new^acmecorp'",
    key_name: 'NULL', key_scopes: "'{}'", key_metadata: "'{}'", is_claimed: 'true', most_keys: '10', ends_at: 'NULL', life_seconds: 'NULL', longest_seconds: 'NULL',
    actor: "'oidc:anybody'", request_id: "'x'", address: "'203.0.113.7'", slot: 'NULL', request: 'NULL', keep_seconds: 'NULL',
  }
  const issue = (other: Partial<typeof given> = {}) => `SELECT issue_key(${Object.entries({ ...given, ...other }).map(([name, value]) => `${name} => ${value}`).join()})`
  for (const [what, other, code] of [
    ["another organization's Mecha", { of_mecha: "'sales^rivalcrew'" }, 'MK404'],
    ["another organization's crew", { of_mecha: "'new^reserved'" }, 'MK404'],
    ['no organization', { of_org: 'NULL' }, 'MK404'],
    ['a crew that it has no claim to', { is_claimed: 'NULL' }, 'MK404'],
    ['no handle', { of_mecha: "'nothing'" }, '23514'],
    ['an end that is over', { ends_at: "now() - interval '1 day'" }, 'MK400'],
    ['a life that is over', { life_seconds: '-1' }, 'MK400'],
    ['a plaintext in the place of a hash', { key_hash: "'mecha_x'" }, '23514'],
    ['a key that there is', { key_id: `'${id}'` }, '23505'],
    ['nobody', { actor: 'NULL' }, '23502'],
  ] as const)
    await t.rejects(write(issue(other)), { code }, what)
  t.same(await owner.selectFrom('mechas').select('handle').orderBy('handle').execute(), [{ handle: 'sales^acmecorp' }, { handle: 'sales^rivalcrew' }])

  await t.rejects(write('CREATE FUNCTION public.clock_timestamp() RETURNS timestamptz LANGUAGE sql AS $$ SELECT now() $$'), DENIED)
  const mine = ['keys', 'events', 'mechas', 'crews', 'idempotency_keys'].map((table) => `CREATE TEMPORARY TABLE ${table} (LIKE public.${table})`)
  await write(...mine, `SET LOCAL search_path = pg_temp, public`, issue({ slot: "'\\x01'", request: "'\\x02'", keep_seconds: '60' }).replace('FROM keys', 'FROM public.keys').replace('issue_key', 'public.issue_key'))
  const [made] = await owner.selectFrom('keys').selectAll().where('mecha', '=', 'new^acmecorp').execute()
  t.match(made, { org_id: 'acme', created_by: 'oidc:anybody', expires_at: null, revoked_at: null, rotated_from: null })
  t.ok(Math.abs(made!.created_at.getTime() - Date.now()) < 60_000)
  const [told, ...more] = await owner.selectFrom('events').selectAll().where('key_id', '=', made!.id).execute()
  t.same(more, [])
  t.match(told, { type: 'key.issued', kind: 'mecha', org_id: 'acme', mecha: 'new^acmecorp', actor: 'oidc:anybody', at: made!.created_at, data: { expires_at: null } })
  t.match(await owner.selectFrom('idempotency_keys').selectAll().execute(), [{ key_id: made!.id }])
})

t.test('rotate_key and revoke_key keep to the rules as well', async (t) => {
  const { service, write, owner } = await login(t)
  const [key, revoked, rotated, expired] = [await issued(service), await issued(service), await issued(service), await issued(service)]
  const rival = parsePublicId('mecha', (await service.issue({ mecha: 'sales^rivalcrew' }, { org: 'rival' })).key.id)!
  const revokeKey = (id: string, org = "'acme'", more = "'{acmecorp}', 'oidc:anybody', NULL") => `SELECT revoke_key('${id}', 'mecha', ${org}, ${more}, 'x', 'x')`
  const rotateKey = (id: string, other: Record<string, string> = {}) => `SELECT rotate_key(${Object.entries({
    old_id: `'${id}'`, old_version: `(SELECT xmin FROM keys WHERE id = '${id}')`, old_public_id: "'old'", overlap_seconds: '60', key_id: 'gen_random_uuid()', key_public_id: "'new'",
    key_hash: `(SELECT hash FROM keys WHERE id = '${id}')`, key_tag_root: "'x'", key_pepper_root: "'x'", of_org: "'acme'", of_mecha: "'sales^acmecorp'", key_name: 'NULL', key_scopes: "'{}'", key_metadata: "'{}'",
    most_keys: '10', ends_at: 'NULL', life_seconds: 'NULL', longest_seconds: 'NULL', actor: "'oidc:anybody'", request_id: "'x'", address: "'x'", slot: 'NULL', request: 'NULL', keep_seconds: 'NULL', ...other,
  }).map(([name, value]) => `${name} => ${value}`).join()})`
  await write(revokeKey(revoked.id))
  await write(rotateKey(rotated.id))
  await owner.updateTable('keys').set({ expires_at: new Date(Date.now() - 60_000) }).where('id', '=', expired.id).execute()
  const before = async () => JSON.stringify([await owner.selectFrom('keys').selectAll().orderBy('id').execute(), await owner.selectFrom('events').select('position').orderBy('position').execute()])
  const all = await before()
  for (const [what, statement, code] of [
    ['revoked', rotateKey(revoked.id), 'MK412'],
    ['rotated', rotateKey(rotated.id), 'MK412'],
    ['expired', rotateKey(expired.id), 'MK412'],
    ['of another organization', rotateKey(rival), 'MK412'],
    ['of another Mecha', rotateKey(key.id, { of_mecha: "'sales^rivalcrew'" }), 'MK412'],
    ['changed since', rotateKey(key.id, { old_version: "'3'" }), 'MK412'],
    ['too many', rotateKey(key.id, { most_keys: '1' }), 'MK409'],
    ['an end that is over', rotateKey(key.id, { life_seconds: '-1' }), 'MK400'],
  ] as const)
    await t.rejects(write(statement), { code }, what)
  await write(revokeKey(rival), revokeKey(key.id, 'NULL'), revokeKey(key.id, "'acme'", "'{}', 'oidc:anybody', NULL"), revokeKey(revoked.id))
  await t.rejects(write(revokeKey(key.id, "'acme'", 'NULL, NULL, NULL')), 'by nobody')
  t.equal(await before(), all, 'nothing of it was written')

  await write(rotateKey(key.id, { overlap_seconds: '-60' }))
  const old = await owner.selectFrom('keys').selectAll().where('id', '=', key.id).executeTakeFirstOrThrow()
  const successor = await owner.selectFrom('keys').selectAll().where('rotated_from', '=', key.id).executeTakeFirstOrThrow()
  t.same([old.rotated_to, old.expires_at, old.enabled], [successor.id, successor.created_at, false], 'it does not end before it is rotated')
  await write(revokeKey(successor.id))
  t.match(await owner.selectFrom('events').select(['type', 'key_id', 'actor', 'at']).orderBy('position', 'desc').limit(3).execute(), [
    { type: 'key.revoked', key_id: successor.id, actor: 'oidc:anybody' }, { type: 'key.issued', key_id: successor.id, at: successor.created_at }, { type: 'key.rotated', key_id: key.id, at: successor.created_at },
  ])
})

t.test('a signing key is announced and told of, and goes when what it signed has ended or when it is told to be compromised', async (t) => {
  const { write, owner } = await login(t)
  const [first] = await owner.selectFrom('signing_keys').select('kid').execute()
  const kid = 'x'.repeat(43)
  const add = (signsFrom: string) => `INSERT INTO signing_keys SELECT '${kid}', alg, sealed, root, now(), 'cli:mallory', ${signsFrom} FROM (SELECT alg, sealed, root FROM signing_keys UNION ALL SELECT 'EdDSA', '', '' LIMIT 1) AS one`
  const tell = (more = '{}') => `INSERT INTO events (at, type, kind, actor, request_id, address, data) VALUES (now(), 'signing_key.created', 'signing_key', 'cli:mallory', 'x', 'x', jsonb_build_object('kid', '${kid}') || '${more}')`
  const lead = (seconds: number) => `now() + interval '${seconds} seconds'`
  await t.rejects(write('DELETE FROM signing_keys'), DENIED, 'the only one')
  await t.rejects(write('DELETE FROM signing_keys', add('now()'), tell()), DENIED, 'for another one, and nobody is told why')
  await t.rejects(write(add(lead(LEAD + 1))), DENIED, 'without an event')
  await t.rejects(write(add(lead(LEAD - 1)), tell()), DENIED, 'before others can have it')
  await t.rejects(write(add(lead(LEAD + 1)), tell(), tell()), DENIED, 'told twice')
  await t.resolves(write(add(lead(LEAD + 1)), tell()))
  await t.rejects(write(`DELETE FROM signing_keys WHERE kid = '${kid}'`), DENIED, 'the next one')
  const age = (seconds: number) => sql`UPDATE signing_keys SET signs_from = now() - make_interval(secs => ${seconds}) WHERE kid = ${kid}`.execute(owner)
  await sql`UPDATE signing_keys SET signs_from = now() - interval '1 day' WHERE kid = ${first!.kid}`.execute(owner)
  await age(KEEP - 60)
  await t.rejects(write(`DELETE FROM signing_keys WHERE kid = '${first!.kid}'`), DENIED, 'what it signed last may be alive')
  await age(KEEP + 1)
  await t.rejects(write('DELETE FROM signing_keys'), DENIED, 'all of them')
  await t.resolves(write(`DELETE FROM signing_keys WHERE kid = '${first!.kid}'`))
})

t.test('an index of the status list is freed when its key ended long ago, and given to no key', async (t) => {
  const { service, write, owner } = await login(t)
  const [{ id }, other] = [await issued(service), await issued(service)]
  await sql`SELECT token_status_place(${id})`.execute(owner)
  const free = 'UPDATE token_status SET key_id = NULL'
  await t.rejects(write(free), DENIED, 'of a living key')
  await t.rejects(write(`UPDATE token_status SET key_id = '${other.id}'`), DENIED)
  await owner.updateTable('keys').set({ expires_at: sql<Date>`now() - make_interval(secs => ${KEEP - 60})` }).where('id', '=', id).execute()
  await t.rejects(write(free), DENIED, 'a JWT of it may be alive')
  await owner.updateTable('keys').set({ expires_at: sql<Date>`now() - make_interval(secs => ${KEEP + 1})` }).where('id', '=', id).execute()
  await t.resolves(write(free))
})

t.test('who did something, and to which living key, is the service\'s word', async (t) => {
  const { service, write, owner } = await login(t)
  const { key, plaintext_key } = await service.issue({ mecha: 'sales^rivalcrew' }, { org: 'rival' })
  const id = parsePublicId('mecha', key.id)!
  const told = (what: string, data: string) => event(id, { org_id: 'rival', mecha: 'sales^rivalcrew', actor: `oidc:${what}`, data })
  t.match(await service.verify(plaintext_key, {}, await service.gateway({ org: 'rival' })), { valid: true })
  const change = (set: string) => `UPDATE keys SET ${set} WHERE id = '${id}'`
  for (const set of ["name = 'other'", 'enabled = false', 'enabled = true', "expires_at = now() + interval '1 hour'", 'expires_at = NULL']) await t.resolves(write(change(set), told('anybody', '{"any": "thing"}')), set)
  await t.resolves(write(revoke(id, 'oidc:anybody'), told('anybody', '{}').replace('key.updated', 'key.revoked')))
  await t.resolves(write("INSERT INTO mechas (handle, org_id) VALUES ('free^handle', 'whoever')"))
  await owner.insertInto('crews').values({ crew: 'reserved', org_id: 'rival' }).execute()
  for (const org of ['whoever', 'rival']) await write(`INSERT INTO mechas (handle, org_id) VALUES ('new^reserved', '${org}')`)
  t.match(await owner.selectFrom('mechas').selectAll().where('handle', '=', 'new^reserved').execute(), [{ org_id: 'rival' }], 'and not in a crew that is reserved for another organization')
  const { events } = (await service.call('GET', `/v1/events?key_id=${key.id}`, { token: await service.token({ org: 'rival' }) })).body
  t.match(events.at(-1), { type: 'key.revoked', actor: 'oidc:anybody', address: '203.0.113.7' })
})

t.test('a key that it makes verifies nothing without the root secret, and with it, it does; both are events', async (t) => {
  const { service, write } = await login(t)
  const { id: unused } = await issued(service)
  const [root] = rootsOf(service.config.ROOT_SECRETS!)
  const [guess] = rootsOf([randomBytes(32).toString('base64url')])
  /** The plaintext of a key that nobody was issued, whose hash was made under a root. */
  const make = async (id: string, under: Root) => {
    const { text, secret } = makeToken(service.config.KEY_PREFIX, id, root)
    return { text, hash: await hashSecret({ id, subject: 'sales^acmecorp', secret }, { root: under, version: 2 }, 'high-entropy') }
  }
  const columns = COPIED.split(', ')
  for (const [under, verdict] of [[guess, { valid: false, code: 'unknown' }], [root, { valid: true }]] as const) {
    const [id, replaced] = [newId(), await make(unused, under)]
    const made = await make(id, under)
    const values = columns.map((column) => ({ hash: `'${made.hash}'`, pepper_root: `'${root.id}/2'`, tag_root: `'${root.id}'` })[column] ?? column)
    await write(insert(`id, created_at, ${COPIED}`, `'${id}', now(), ${values.join()}`, unused), event(id, { type: 'key.issued', actor: 'builtin:alice' }))
    await write(`UPDATE keys SET hash = '${replaced.hash}', pepper_root = '${root.id}/2' WHERE id = '${unused}'`, event(unused, { type: 'key.secret_replaced' }))
    await applied(service.database)
    for (const { text } of [made, replaced]) t.match(await service.verify(text), verdict)
  }
})

t.test('signing keys that it spoils sign nothing until they are rotated as compromised', async (t) => {
  const { service, write, owner } = await login(t)
  const { plaintext } = await issued(service)
  const signs = async () => {
    const replica = await startService(t, { ROOT_SECRETS: service.config.ROOT_SECRETS!.join(), PLANES: 'runtime' }, service.database)
    return (await exchange(replica, plaintext)).status
  }
  const rotate = () => rotateSigningKeys({ db: owner, roots: rootsOf(service.config.ROOT_SECRETS!) }, { actor: 'test', requestId: 'test', address: '' }, { compromised: true })
  t.equal(await signs(), 200)
  await write("UPDATE signing_keys SET sealed = '\\x00'")
  t.equal(await signs(), 503)
  await rotate()
  t.equal(await signs(), 200)
  const [old] = await owner.selectFrom('signing_keys').select(['kid', 'root']).execute()
  const kid = 'x'.repeat(43)
  await write(
    'DELETE FROM signing_keys', `INSERT INTO signing_keys VALUES ('${kid}', 'EdDSA', '\\x00', '${old!.root}', now(), 'cli:anybody', now())`,
    `INSERT INTO events (at, type, kind, actor, request_id, address, data) VALUES (now(), 'signing_key.created', 'signing_key', 'cli:anybody', 'x', 'x', '{"kid": "${kid}", "compromised": ["${old!.kid}"]}')`,
  )
  t.equal(await signs(), 503)
  await rotate()
  t.equal(await signs(), 200)
})

t.test('a table of one\'s own under another name does not make one its owner', async (t) => {
  const { service, write } = await login(t)
  const { id } = await issued(service)
  const mine = ['CREATE TEMPORARY TABLE pg_class AS SELECT oid, relowner FROM pg_catalog.pg_class', 'CREATE TEMPORARY TABLE keys (LIKE public.keys)', 'CREATE TEMPORARY TABLE events (LIKE public.events)']
  await t.rejects(write(...mine, rename(id).replace('keys', 'public.keys')), DENIED)
  await t.rejects(write(...mine, event(id).replace('events', 'public.events')), DENIED)
  await t.rejects(write('SET LOCAL session_replication_role = replica'), DENIED)
})

t.test('the owner\'s writes stand: a revocation and its event by hand, and a holder\'s', async (t) => {
  const { service, owner } = await login(t)
  const [one, two] = [await issued(service), await issued(service)]
  await owner.transaction().execute(async (trx) => {
    await sql.raw(revoke(one.id, 'restore')).execute(trx)
    await sql.raw(event(one.id, { type: 'key.revoked', actor: 'restore' })).execute(trx)
  })
  const holder = await service.call('POST', '/v1/revoke-token', { body: `token=${two.plaintext}`, headers: { 'content-type': 'application/x-www-form-urlencoded' } })
  t.equal(holder.status, 200)
  t.match(await owner.selectFrom('keys').select('revoked_by').orderBy('created_at').execute(), [{ revoked_by: 'restore' }, { revoked_by: 'holder' }])
})
