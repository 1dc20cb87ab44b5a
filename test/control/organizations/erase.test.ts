/** An organization is erased by the command, while replicas are asked, with others beside it, and through crashes. */

import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { sql, type Kysely } from 'kysely'
import t, { type Test } from 'tap'
import { reserveCrew } from '../../../src/control/crews/reserve.js'
import { eraseOrganization, planErasure } from '../../../src/control/organizations/erase.js'
import { replayTrail, restoreAuthor } from '../../../src/control/restore/replay.js'
import { freeStatusListIndexes } from '../../../src/control/signing-keys/store.js'
import type { TrailEvent } from '../../../src/control/audit/follow.js'
import { openDatabase } from '../../../src/db/pool.js'
import type { Database } from '../../../src/db/tables.js'
import { newId, parsePublicId } from '../../../src/credentials/id.js'
import { KEEP } from '../../../src/credentials/signing-key.js'
import { emptyDatabase, type TestDatabase } from '../../helpers/database.js'
import { eventually } from '../../helpers/eventually.js'
import { exchanged } from '../../helpers/oauth.js'
import { run, start, type Ended } from '../../helpers/process.js'
import { fresh, startService } from '../../helpers/service.js'
import { layWire } from '../../helpers/wire.js'

const KEPT = /events can be neither changed nor deleted/
const author = { actor: 'cli:test', requestId: 'test', address: 'local' }

t.test('in two steps: the first shows what there is, the second erases that and nothing else', async (t) => {
  const { service, replica, plaintexts, gateway, others } = await populated(t)
  const { database } = service
  const shown = await erase(t, database, ['acme'])
  t.match(shown, { code: 0, stderr: '' })
  for (const line of ['2 Mechas', '5 keys, 3 of them not revoked', '2 gateway credentials, 2 of them not revoked', '1 reserved crews', '11 events'])
    t.match(shown.stdout, new RegExp(`^  ${line}`, 'm'), line)
  t.match(await erase(t, database, ['acme', '--confirm', '0123456789abcdef']), { code: 1, stderr: /is not what was confirmed/ })
  const confirmation = confirmationIn(shown)
  const { key } = await service.issue()
  t.match(await erase(t, database, ['acme', '--confirm', confirmation]), { code: 1, stderr: /is not what was confirmed/ }, 'there is more than was shown')
  for (const of of [service, replica]) for (const plaintext of plaintexts) t.match(await of.verify(plaintext, {}, others.all), { valid: true }, 'nothing has changed')

  const before = { ...(await contents(database.db, 'rival')) }
  const confirmed = confirmationIn(await erase(t, database, ['acme']))
  const erased = await erase(t, database, ['acme', '--confirm', confirmed])
  t.match(erased, { code: 0, stdout: /^erased acme\nwhat remains in the database: .*\nwhat remains elsewhere/, stderr: /revoked 6 credentials\n.*all replicas refuse them: 2\n/ })
  for (const of of [service, replica]) {
    for (const plaintext of plaintexts) t.match(await of.verify(plaintext, {}, others.all), { valid: false, code: 'unknown' })
    t.match(await of.call('POST', '/v1/verify', { token: gateway, body: { key: others.key } }), { status: 401 })
    t.match(await of.verify(others.key, {}, others.all), { valid: true }, "another organization's")
  }
  t.same(await contents(database.db, 'rival'), before, 'what is of others is as it was')
  const found = Object.entries(await everything(database.db)).filter(([, text]) => /\bacme\b|acmecorp|alice|nightly|reserved-one/.test(text))
  t.same(found.map(([table]) => table), [], 'no table has its id, its handles, its people or its names')
  const [event] = await database.db.selectFrom('events').selectAll().where('type', '=', 'organization.erased').execute()
  t.match(event, { org_id: null, key_id: null, kind: 'organization', actor: /^cli:/, data: { organization_sha256: /^[0-9a-f]{64}$/, mechas: 2, keys: 6, keys_not_revoked: 4, gateways: 2, crews: 1, events: 12 } })

  t.match((await erase(t, database, ['acme'])).stdout, /^the database has nothing of acme\n/)
  const again = await service.issue()
  t.match(await service.verify(again.plaintext_key, {}, others.all), { valid: true }, 'an organization of that name can come, and has a history of its own')
  t.equal((await service.call('GET', '/v1/events', { token: await service.token() })).body.events.length, 1)
  t.ok(key)
})

t.test('a replica that is cut off refuses before anything is removed, and is waited for as long as that takes', async (t) => {
  const database = await emptyDatabase()
  const wire = await layWire(t, database.owner)
  const settings = { REVOCATION_MAX_STALENESS: '2s' }
  const service = await startService(t, settings, database)
  const away = await startService(t, { ...settings, PLANES: 'runtime', ROOT_SECRETS: service.config.ROOT_SECRETS!.join() }, { ...database, runtime: wire.through(database.runtime) })
  await Promise.all([service, away].map(fresh))
  const credential = await service.gateway({ org: 'acme' })
  const { plaintext_key } = await service.issue()
  t.match(await away.verify(plaintext_key, {}, credential), { valid: true })
  wire.silence()
  const isAccepted = async () => (await away.call('POST', '/v1/verify', { token: credential, body: { key: plaintext_key } })).body?.valid === true
  t.ok(await isAccepted(), 'from memory')
  const { confirmation } = await planErasure(database.db, 'acme')
  let removedAt = 0
  const erasing = eraseOrganization(database.db, 'acme', { confirmation, author, boundMs: 2000, onStep: (message) => void (/could accept them|refuse them/.test(message) && (removedAt = performance.now())) })
  let acceptedAt = 0
  while (removedAt === 0) if (await isAccepted()) acceptedAt = performance.now()
  t.ok(acceptedAt < removedAt)
  t.notOk(await isAccepted())
  t.match(await erasing, { counts: { keys: 1, gateways: 1 } })
  wire.restore()
})

t.test('where nobody can say that it is refused everywhere, nothing is removed', async (t) => {
  const service = await startService(t, { REVOCATION_MAX_STALENESS: '1s' })
  await service.issue()
  const { db } = service.database
  await fresh(service)
  await sql`UPDATE database_identity SET lost_at = now()`.execute(db)
  const { confirmation } = await planErasure(db, 'acme')
  const options = { confirmation, author, boundMs: 100, onStep: () => {} }
  t.equal(await eraseOrganization(db, 'acme', { ...options, boundMs: 100 }), 'not_propagated')
  t.match(await db.selectFrom('keys').select('revoked_by').execute(), [{ revoked_by: 'cli:test' }], 'revoked, and there')
  await sql`SELECT accept_database('test')`.execute(db)
  t.match(await eraseOrganization(db, 'acme', options), { counts: { keys: 1 } })
})

t.test('interrupted after any step, it is gone on with by the same command, and meanwhile nothing is made for the organization', async (t) => {
  const { service } = await populated(t)
  const { db } = service.database
  const { confirmation } = await planErasure(db, 'acme')
  const seen: string[] = []
  for (let isOver = false; !isOver; ) {
    const onStep = (message: string) => {
      const step = message.replace(/\d+/g, 'n')
      if (seen.includes(step)) return
      seen.push(step)
      throw new Error('crash')
    }
    isOver = await eraseOrganization(db, 'acme', { confirmation, author, boundMs: 10_000, onStep }).then((erased) => typeof erased === 'object', (error: Error) => error.message !== 'crash')
    if (isOver) break
    const token = await service.token()
    for (const mecha of ['sales^acmecorp', 'new^acmecorp']) t.match(await service.call('POST', '/v1/keys', { token, body: { mecha } }), { status: 503, body: { code: 'overloaded' } }, `${mecha} after: ${seen.at(-1)}`)
    t.match(await service.call('POST', '/v1/gateways', { token, body: { name: 'edge' } }), { status: 503 })
    t.match(await planErasure(db, 'acme'), { isUnderWay: true, confirmation })
    t.equal(await eraseOrganization(db, 'acme', { confirmation: 'another', author, boundMs: 10_000, onStep }), 'not_confirmed')
  }
  t.equal(seen.length, 5)
  t.match(await planErasure(db, 'acme'), { isUnderWay: false, counts: { mechas: 0, keys: 0, gateways: 0, crews: 0, events: 0 } })
  t.match(await db.selectFrom('events').select('data').where('type', '=', 'organization.erased').execute(), [{ data: { keys: 5, keys_not_revoked: 3 } }], 'as it was when it began')
})

t.test('killed while it removes, and run again', async (t) => {
  const { service } = await populated(t)
  const { database } = service
  const confirmation = confirmationIn(await erase(t, database, ['acme']))
  const env = { DATABASE_URL: database.control, MIGRATE_DATABASE_URL: database.owner }
  await database.db.transaction().execute(async (trx) => {
    await sql`SELECT FROM key_usage FOR UPDATE`.execute(trx)
    const running = start(t, ['organization', 'erase', 'acme', '--confirm', confirmation], { env })
    await eventually(async () => /refuse them/.test(running.stderr()) && (await waits(database.db)))
    running.signal('SIGKILL')
    await running.ended()
  })
  t.match((await erase(t, database, ['acme'])).stdout, /^acme is being erased, and still has in this database:/)
  t.match(await erase(t, database, ['acme', '--confirm', confirmation]), { code: 0, stdout: /^erased acme\n/ })
})

t.test('who is making a key while it begins has made it before, and what was confirmed is no longer so', async (t) => {
  const service = await startService(t)
  const { key } = await service.issue()
  const { db } = service.database
  const { confirmation } = await planErasure(db, 'acme')
  const other = openDatabase({ url: service.database.owner, size: 1, timeoutMs: 30_000, name: 'test' })
  t.teardown(() => other.destroy())
  let erasing: Promise<unknown> | undefined
  await other.transaction().execute(async (trx) => {
    await sql`INSERT INTO keys (id, kind, org_id, mecha, hash, tag_root, pepper_root, created_at, created_by) SELECT ${newId()}, kind, org_id, mecha, hash, tag_root, pepper_root, created_at, created_by FROM keys`.execute(trx)
    erasing = eraseOrganization(db, 'acme', { confirmation, author, boundMs: 1000, onStep: () => {} })
    await eventually(async () => (await sql`SELECT FROM pg_locks WHERE NOT granted AND mode = 'ShareRowExclusiveLock'`.execute(trx)).rows.length > 0)
  })
  t.equal(await erasing, 'not_confirmed')
  t.ok(key)
})

t.test('many keys, in chains of rotations longer than a piece', async (t) => {
  const service = await startService(t)
  await service.issue()
  const { db } = service.database
  await sql`INSERT INTO keys (id, kind, org_id, mecha, hash, tag_root, pepper_root, created_at, created_by)
    SELECT gen_random_uuid(), kind, org_id, mecha, hash, tag_root, pepper_root, created_at + n * interval '1 second', created_by FROM keys, generate_series(1, 1200) AS n`.execute(db)
  await sql`UPDATE keys SET rotated_to = next, rotated_from = previous FROM (SELECT id AS of, lead(id) OVER w AS next, lag(id) OVER w AS previous FROM keys WINDOW w AS (ORDER BY created_at)) AS chain WHERE id = of`.execute(db)
  const { confirmation } = await planErasure(db, 'acme')
  t.match(await eraseOrganization(db, 'acme', { confirmation, author, boundMs: 10_000, onStep: () => {} }), { counts: { keys: 1201 } })
  t.equal((await db.selectFrom('keys').select('id').execute()).length, 0)
})

t.test('what is of others cannot be removed in its name, nor anything after it', async (t) => {
  const { service } = await populated(t)
  const { db } = service.database
  await sql`INSERT INTO erasures (organization, confirmation, counts, begun_at) VALUES (sha256('acme'), 'x', '{}', now())`.execute(db)
  const asEraser = (statement: string) =>
    db.transaction().execute(async (trx) => {
      await sql`SELECT set_config('mecha_keys.erase', 'on', true)`.execute(trx)
      return sql.raw(statement).execute(trx)
    })
  for (const statement of ['DELETE FROM events', "DELETE FROM events WHERE org_id = 'rival'", 'DELETE FROM events WHERE org_id IS NULL', 'DELETE FROM events_open', "UPDATE events SET actor = 'x' WHERE org_id = 'acme'", 'TRUNCATE events'])
    await t.rejects(asEraser(statement), KEPT, statement)
  await t.rejects(sql`DELETE FROM events WHERE org_id = 'acme'`.execute(db), KEPT, 'without saying so')
  const revoked = (org: string) => sql`(SELECT id FROM keys WHERE org_id = ${org} AND revoked_at IS NOT NULL LIMIT 1)`
  for (const statement of [sql`DELETE FROM keys WHERE id = ${revoked('rival')}`, sql`UPDATE keys SET rotated_to = NULL WHERE id = ${revoked('rival')}`, sql`UPDATE keys SET revoked_at = NULL, revoked_by = NULL WHERE id = ${revoked('acme')}`, sql`UPDATE keys SET name = 'x' WHERE id = ${revoked('acme')}`])
    await t.rejects(statement.execute(db), /a revoked key cannot be changed/)
  await sql`UPDATE erasures SET ended_at = now(), through = 0`.execute(db)
  await t.rejects(asEraser("DELETE FROM events WHERE org_id = 'acme'"), KEPT, 'when it is over')
  await t.rejects(sql`DELETE FROM keys WHERE id = ${revoked('acme')}`.execute(db), /a revoked key cannot be changed/)
  const control = openDatabase({ url: service.database.control, size: 1, timeoutMs: 10_000, name: 'test' })
  t.teardown(() => control.destroy())
  for (const statement of ["INSERT INTO erasures (organization, confirmation, counts, begun_at) VALUES (sha256('rival'), 'x', '{}', now())", 'UPDATE erasures SET ended_at = NULL', 'DELETE FROM erasures', "DELETE FROM events WHERE org_id = 'acme'", 'DELETE FROM keys'])
    await t.rejects(sql.raw(statement).execute(control), { code: '42501' }, statement)
})

t.test('the status list goes on telling that its JWTs have ended, and gives their indexes away when none is alive', async (t) => {
  const service = await startService(t)
  const { db } = service.database
  const { plaintext_key } = await service.issue()
  await exchanged(service, plaintext_key)
  const { confirmation } = await planErasure(db, 'acme')
  await eraseOrganization(db, 'acme', { confirmation, author, boundMs: 10_000, onStep: () => {} })
  const places = async () => (await db.selectFrom('token_status').selectAll().execute()).map(({ key_id, key_erased_at }) => [key_id !== null, key_erased_at !== null])
  const control = openDatabase({ url: service.database.control, size: 1, timeoutMs: 10_000, name: 'test' })
  t.teardown(() => control.destroy())
  await freeStatusListIndexes(control, new Date())
  t.same(await places(), [[true, true]])
  await t.rejects(sql`UPDATE token_status SET key_id = NULL`.execute(control), { code: '42501' })
  await sql`UPDATE token_status SET key_erased_at = now() - make_interval(secs => ${KEEP + 1})`.execute(db)
  await freeStatusListIndexes(control, new Date())
  t.same(await places(), [[false, false]], 'and whoever has it next does not lose it')
})

t.test('who writes out the trail goes on, whose last event was erased', async (t) => {
  const service = await startService(t)
  const { database } = service
  const folder = mkdtempSync(join(tmpdir(), 'mecha-keys-erase-'))
  t.teardown(() => rmSync(folder, { recursive: true, force: true }))
  const file = join(folder, 'events.jsonl')
  const write = () => run(t, ['events', '--output', file], { env: { DATABASE_URL: database.control } })
  await service.issue()
  t.match(await write(), { code: 0 })
  const { confirmation } = await planErasure(database.db, 'acme')
  await eraseOrganization(database.db, 'acme', { confirmation, author, boundMs: 10_000, onStep: () => {} })
  t.match(await write(), { code: 0, stderr: '' })
  const types = () => readFileSync(file, 'utf8').trim().split('\n').map((line) => (JSON.parse(line) as TrailEvent).type)
  t.same(types(), ['signing_key.created', 'key.issued', 'organization.erased'])
  await service.issue()
  t.match(await write(), { code: 0 })
  t.equal(types().at(-1), 'key.issued')
})

t.test('after a restore from before, a replay ends its credentials again and says that it is back; one from after takes nothing of it for undone', async (t) => {
  const service = await startService(t)
  const { db } = service.database
  const { plaintext_key } = await service.issue()
  const { plaintext_key: gateway } = (await service.call('POST', '/v1/gateways', { token: await service.token(), body: { name: 'edge' } })).body
  await service.issue({ mecha: 'sales^rivalcrew' }, { org: 'rival' })
  const known = (await trailOf(db)).map((event) => ({ ...event }))
  const digest = (await sql<{ digest: string }>`SELECT encode(sha256('acme'), 'hex') AS digest`.execute(db)).rows[0]!.digest
  const erased: TrailEvent = { id: '1000', at: new Date().toISOString(), type: 'organization.erased', org_id: null, key_id: null, mecha: null, actor: 'cli:ops', request_id: 'x', address: 'local', data: { organization_sha256: digest } }
  t.match(await replayTrail(db, pages([...known, erased]), restoreAuthor()), { revoked: 2, erased: ['acme'], gone: [] })
  await eventually(async () => (await service.call('POST', '/v1/verify', { token: gateway, body: { key: '' } })).status === 401)
  t.match(await service.verify(plaintext_key, {}, await service.gateway()), { valid: false, code: 'revoked' })
  t.match(await db.selectFrom('keys').select(['revoked_by', 'revoke_reason']).where('org_id', '=', 'acme').where('kind', '=', 'mecha').execute(), [{ revoked_by: 'cli:ops', revoke_reason: 'the organization was erased after the back-up' }])
  t.same(await db.selectFrom('keys').select('revoked_at').where('org_id', '=', 'rival').execute(), [{ revoked_at: null }])

  const all = await trailOf(db)
  const { confirmation } = await planErasure(db, 'acme')
  await eraseOrganization(db, 'acme', { confirmation, author, boundMs: 10_000, onStep: () => {} })
  t.match(await replayTrail(db, pages(all), restoreAuthor()), { since: 0, revoked: 0, gone: [], erased: [] })
})

/** Two replicas and what acme has: keys in every state, gateways, a crew, times of use, an Idempotency-Key and a nonce; and others beside it. */
async function populated(t: Test) {
  const service = await startService(t)
  const { database } = service
  const replica = await startService(t, { ROOT_SECRETS: service.config.ROOT_SECRETS!.join() }, database)
  await Promise.all([service, replica].map(fresh))
  const token = await service.token()
  const other = { org: 'rival', subject: 'rita' }
  const { plaintext_key: key } = await service.issue({ mecha: 'sales^rivalcrew' }, other)
  const { key: over } = await service.issue({ mecha: 'sales^rivalcrew' }, other)
  await service.call('POST', `/v1/keys/${over.id}/revoke`, { token: await service.token(other) })
  const created = await run(t, ['gateway', 'create', '--all-organizations', '--name', 'everywhere'], { env: { DATABASE_URL: database.control, ROOT_SECRETS: service.config.ROOT_SECRETS!.join() } })
  const all = created.stdout.trim()
  for (const [crew, org] of [['reserved-one', 'acme'], ['rivals-own', 'rival']] as const) await reserveCrew(database.db, author, crew, org)

  const gateway = await service.gateway()
  await service.gateway()
  const idle = await service.issue({ mecha: 'idle^acmecorp', name: 'nightly' })
  const rotated = await service.issue()
  const successor = await service.call('POST', `/v1/keys/${rotated.key.id}/rotate`, { token, body: { overlap_seconds: 600 } })
  const repeated = await service.call('POST', '/v1/keys', { token, body: { mecha: 'sales^acmecorp' }, headers: { 'idempotency-key': 'one' } })
  await service.call('POST', `/v1/keys/${idle.key.id}/revoke`, { token, body: { reason: 'nightly' } })
  const revoked = await service.issue()
  await service.call('POST', `/v1/keys/${revoked.key.id}/revoke`, { token })
  const plaintexts: string[] = [rotated.plaintext_key, successor.body.plaintext_key, repeated.body.plaintext_key]
  for (const of of [service, replica]) for (const plaintext of [...plaintexts, revoked.plaintext_key]) await of.verify(plaintext, {}, all)
  await sql`INSERT INTO nonces VALUES (${parsePublicId('mecha', rotated.key.id)!}, sha256('x'), now() + interval '1 minute')`.execute(database.db)
  return { service, replica, plaintexts, gateway, others: { key, all } }
}

function erase(t: Test, database: TestDatabase, args: string[]): Promise<Ended> {
  return run(t, ['organization', 'erase', ...args], { env: { DATABASE_URL: database.control, MIGRATE_DATABASE_URL: database.owner } })
}

function confirmationIn({ stdout }: Ended): string {
  return /--confirm ([0-9a-f]{16})\n/.exec(stdout)![1]!
}

/** Every table as text. */
async function everything(db: Kysely<Database>): Promise<Record<string, string>> {
  const { rows } = await sql<{ name: string }>`SELECT relname AS name FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p')`.execute(db)
  const texts: Record<string, string> = {}
  for (const { name } of rows) texts[name] = (await sql<{ text: string | null }>`SELECT string_agg(one::text, ' ') AS text FROM ${sql.table(name)} AS one`.execute(db)).rows[0]!.text ?? ''
  return texts
}

/** What there is of an organization, but for times of use, which change. */
async function contents(db: Kysely<Database>, org: string): Promise<Record<string, unknown>> {
  return {
    mechas: await db.selectFrom('mechas').selectAll().where('org_id', '=', org).execute(),
    keys: await db.selectFrom('keys').selectAll().where('org_id', '=', org).orderBy('id').execute(),
    crews: await db.selectFrom('crews').selectAll().where('org_id', '=', org).execute(),
    events: await db.selectFrom('events').selectAll().where('org_id', '=', org).orderBy('position').execute(),
  }
}

async function waits(db: Kysely<Database>): Promise<boolean> {
  return (await sql`SELECT FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'mecha-keys command line' AND wait_event_type = 'Lock'`.execute(db)).rows.length > 0
}

async function trailOf(db: Kysely<Database>): Promise<TrailEvent[]> {
  const events: TrailEvent[] = []
  const { followTrail } = await import('../../../src/control/audit/follow.js')
  await followTrail({ db, write: async (more) => void events.push(...more), last: undefined, after: '0', isEndless: false, signal: new AbortController().signal, warn: () => {} })
  return events
}

async function* pages(events: TrailEvent[]) {
  yield events
}
