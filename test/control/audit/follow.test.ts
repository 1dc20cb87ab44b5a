/** The audit trail, written out by the program as it is run. */

import { appendFileSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { sql, type Kysely, type Transaction } from 'kysely'
import t, { type Test } from 'tap'
import { insertEvents } from '../../../src/control/audit/store.js'
import type { Database } from '../../../src/db/tables.js'
import { newId } from '../../../src/credentials/id.js'
import { emptyDatabase, type TestDatabase } from '../../helpers/database.js'
import { eventually } from '../../helpers/eventually.js'
import { run, start } from '../../helpers/process.js'
import { startService } from '../../helpers/service.js'
import { layWire } from '../../helpers/wire.js'

t.test('what each act says is a line of JSON, with all that a restore needs', async (t) => {
  const service = await startService(t)
  const token = await service.token()
  const call = async (method: 'POST' | 'PATCH', url: string, body?: object, headers?: Record<string, string>) => {
    const answer = await service.call(method, url, { token, body, ...(headers && { headers }) })
    t.ok(answer.status < 300, answer.text)
    return answer.body
  }
  const { key } = await service.issue()
  await call('PATCH', `/v1/keys/${key.id}`, { enabled: false })
  await call('PATCH', `/v1/keys/${key.id}`, { enabled: true, expires_at: '2999-01-01T00:00:00Z' })
  const rotated = await call('POST', `/v1/keys/${key.id}/rotate`, { overlap_seconds: 60 })
  await call('POST', `/v1/keys/${rotated.key.id}/revoke`, { reason: 'leaked' })
  for (const _repeat of [1, 2]) await call('POST', '/v1/keys', { mecha: 'sales^acmecorp' }, { 'idempotency-key': 'one' })
  const gateway = await call('POST', '/v1/gateways', { name: 'edge' })
  await call('POST', `/v1/gateways/${gateway.gateway.id}/revoke`)
  const held = await service.issue()
  await service.call('POST', '/v1/revoke-token', { headers: { 'content-type': 'application/x-www-form-urlencoded' }, body: `token=${held.plaintext_key}` })

  const { code, stdout, stderr } = await run(t, ['events'], { env: { DATABASE_URL: service.database.control } })
  t.equal(code, 0, stderr)
  const events = parse(stdout)
  t.match(events, [
    { type: 'signing_key.created', key_id: null, org_id: null },
    { type: 'key.issued', key_id: key.id, org_id: 'acme', data: { expires_at: null } },
    { type: 'key.updated', key_id: key.id, data: { changes: { enabled: { from: true, to: false } } } },
    { type: 'key.updated', key_id: key.id, data: { changes: { enabled: { to: true }, expires_at: { to: '2999-01-01T00:00:00.000Z' } } } },
    { type: 'key.rotated', key_id: key.id, data: { ends_at: String } },
    { type: 'key.issued', key_id: rotated.key.id },
    { type: 'key.revoked', key_id: rotated.key.id, actor: 'builtin:alice', data: { reason: 'leaked' } },
    { type: 'key.issued' },
    { type: 'key.secret_replaced', key_id: /^key_/ },
    { type: 'gateway.created', key_id: gateway.gateway.id },
    { type: 'gateway.revoked', key_id: gateway.gateway.id, at: String },
    { type: 'key.issued', key_id: held.key.id },
    { type: 'key.revoked', key_id: held.key.id, actor: 'holder' },
  ])
  t.notOk(stdout.includes(held.plaintext_key))
  const rest = await run(t, ['events', '--after', events[9]!.id], { env: { DATABASE_URL: service.database.control } })
  t.same(parse(rest.stdout), events.slice(10))
})

t.test('an event that commits late is not skipped, and nothing above it is written before', async (t) => {
  const database = await emptyDatabase()
  const file = temporaryFile(t)
  await write(database.db, 'one')
  const following = follow(t, database.control, file)
  await eventually(() => lines(file).length === 1)
  const [late, ends] = await openTransaction(database.db, 'late')
  for (let i = 0; i < 5; i++) await write(database.db, `other ${i}`)
  const { rows } = await sql<{ count: number }>`SELECT count(*)::int AS count FROM events`.execute(database.db)
  t.equal(rows[0]!.count, 6, 'five are there above the one that is not')
  await polledTwice(database)
  t.equal(lines(file).length, 1)
  ends()
  await late
  await eventually(() => lines(file).length === 7)
  t.same(parse(readFileSync(file, 'utf8')).map(({ org_id }) => org_id), ['one', 'late', ...[0, 1, 2, 3, 4].map((i) => `other ${i}`)])
  following.signal('SIGTERM')
  t.match(await following.ended(), { code: 0, stderr: '' })
})

t.test('killed at any moment, it goes on where the file ends: each event is in it once, in order', async (t) => {
  const database = await emptyDatabase()
  const file = temporaryFile(t)
  let isWriting = true
  const writing = Promise.all(['a', 'b', 'c'].map(async (org) => {
    while (isWriting) await write(database.db, org)
  }))
  for (let kill = 0, last = 0; kill < 4; kill++) {
    const following = follow(t, database.control, file)
    await eventually(() => lines(file).length > last)
    following.signal('SIGKILL')
    await following.ended()
    last = lines(file).length
    // What a crash of the machine can leave.
    appendFileSync(file, '{"id":"99999999","type":"key.rev')
  }
  isWriting = false
  await writing
  const last = await run(t, ['events', '--output', file], { env: { DATABASE_URL: database.control } })
  t.match(last, { code: 0 })
  const written = parse(readFileSync(file, 'utf8')).map(({ id }) => id)
  const { rows } = await sql<{ id: string }>`SELECT position::text AS id FROM events ORDER BY position`.execute(database.db)
  t.same(written, rows.map(({ id }) => id))
  t.ok(written.length > 100, `${written.length} events`)
})

t.test('it waits for a database that is away, and ends when it is told to, also then', async (t) => {
  const database = await emptyDatabase()
  const wire = await layWire(t, database.owner)
  const file = temporaryFile(t)
  const following = follow(t, wire.through(database.control), file, { DATABASE_TIMEOUT: '1s' })
  await write(database.db, 'before')
  await eventually(() => lines(file).length === 1)
  wire.cut()
  await write(database.db, 'meanwhile')
  await eventually(() => /does not answer/.test(following.stderr()))
  wire.restore()
  await eventually(() => lines(file).length === 2)
  wire.silence()
  await write(database.db, 'after')
  following.signal('SIGTERM')
  const start = performance.now()
  t.match(await following.ended(), { code: 0 })
  t.ok(performance.now() - start < 5000)
  wire.restore()
})

t.test('where the last line is of no event that the database has, it says so and writes nothing', async (t) => {
  const database = await emptyDatabase()
  const file = temporaryFile(t)
  for (const org of ['a', 'b']) await write(database.db, org)
  await run(t, ['events', '--output', file], { env: { DATABASE_URL: database.control } })
  const before = readFileSync(file, 'utf8')
  await emptyDatabase()
  for (const org of ['c', 'd', 'e']) await write(database.db, org)
  t.match(await follow(t, database.control, file).ended(), { code: 78, stderr: /it was restored/ })
  t.equal(readFileSync(file, 'utf8'), before)
  writeFileSync(file, 'something else\n')
  t.match(await follow(t, database.control, file).ended(), { code: 78, stderr: /something else/ })
  t.equal(readFileSync(file, 'utf8'), 'something else\n', 'and is left alone')
})

const follow = (t: Test, url: string, file: string, more = {}) => start(t, ['events', '--follow', '--output', file], { env: { DATABASE_URL: url, ...more } })

function temporaryFile(t: Test): string {
  const folder = mkdtempSync(join(tmpdir(), 'mecha-keys-events-'))
  t.teardown(() => rmSync(folder, { recursive: true, force: true }))
  const file = join(folder, 'events.jsonl')
  writeFileSync(file, '')
  return file
}

const lines = (file: string): string[] => readFileSync(file, 'utf8').split('\n').filter((line) => line.endsWith('}'))

function parse(text: string): any[] {
  return text.split('\n').filter(Boolean).map((line) => JSON.parse(line))
}

const event = () => ({ at: new Date(), type: 'key.issued', key_id: newId(), kind: 'mecha' as const, mecha: null, actor: 'test', request_id: newId(), address: 'local', data: {} as never })

async function write(db: Kysely<Database>, org: string): Promise<void> {
  await db.transaction().execute((trx) => insertEvents(trx, org, [event()]))
}

/** A transaction that has written an event, and commits when it is told to. */
async function openTransaction(db: Kysely<Database>, org: string): Promise<[Promise<void>, () => void]> {
  let commit = () => {}
  const told = new Promise<void>((resolve) => (commit = resolve))
  let written = () => {}
  const hasWritten = new Promise<void>((resolve) => (written = resolve))
  const over = db.transaction().execute(async (trx: Transaction<Database>) => {
    await insertEvents(trx, org, [event()])
    written()
    await told
  })
  await hasWritten
  return [over, commit]
}

/** Resolves when the follower has asked twice more. */
async function polledTwice({ db }: TestDatabase): Promise<void> {
  const asked = async () => {
    const { rows } = await sql<{ at: Date | null }>`SELECT max(query_start) AS at FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'mecha-keys events'`.execute(db)
    return rows[0]!.at?.getTime() ?? 0
  }
  for (let i = 0, last = await asked(); i < 2; i++) {
    await eventually(async () => (await asked()) > last)
    last = await asked()
  }
}
