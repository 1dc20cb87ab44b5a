import { sql } from 'kysely'
import t from 'tap'
import { parsePublicId } from '../../../src/credentials/id.js'
import { eventually } from '../../helpers/eventually.js'
import { startService, type Answer, type Service } from '../../helpers/service.js'

const BODY = { mecha: 'sales^acmecorp', name: 'x', metadata: { a: 1, b: 2 } }
const once = { 'idempotency-key': '8e03978e-40d5-43dd-bc93-6894a57f9324' }

t.test('a repeat gets the same key with a new secret, and the secret before is dead', async (t) => {
  const service = await startService(t)
  const token = await service.token()
  const first = await service.call('POST', '/v1/keys', { token, body: BODY, headers: once })
  const again = await service.call('POST', '/v1/keys', { token, body: { ...BODY, metadata: { b: 2, a: 1 } }, headers: once })
  t.equal(again.status, 201)
  t.same(again.body.key, first.body.key)
  t.not(again.body.plaintext_key, first.body.plaintext_key)
  t.same(await service.verify(first.body.plaintext_key), { valid: false, code: 'unknown' })
  t.match(await service.verify(again.body.plaintext_key), { valid: true, key_id: first.body.key.id })
  t.equal((await service.call('GET', '/v1/keys', { token })).body.keys.length, 1, 'one key')
  const { body } = await service.call('GET', '/v1/events', { token })
  t.same(body.events.map((event: any) => event.type).filter((type: string) => type.startsWith('key.')), ['key.issued', 'key.secret_replaced'])
})

t.test('409: once the key has been used, or has ended, it is not revealed again', async (t) => {
  const service = await startService(t)
  const token = await service.token()
  const used = await service.call('POST', '/v1/keys', { token, body: BODY, headers: once })
  await service.verify(used.body.plaintext_key)
  t.match(await service.call('POST', '/v1/keys', { token, body: BODY, headers: once }), { status: 409, body: { code: 'idempotent_key_in_use' } })
  t.match(await service.verify(used.body.plaintext_key), { valid: true }, 'its secret lives on')
  const other = { 'idempotency-key': 'other' }
  const ended = await service.call('POST', '/v1/keys', { token, body: BODY, headers: other })
  await service.call('POST', `/v1/keys/${ended.body.key.id}/revoke`, { token })
  t.match(await service.call('POST', '/v1/keys', { token, body: BODY, headers: other }), { status: 409, body: { code: 'idempotent_key_in_use' } })
})

t.test('422: the same Idempotency-Key with another body, or on another route', async (t) => {
  const service = await startService(t)
  const token = await service.token()
  const { body } = await service.call('POST', '/v1/keys', { token, body: BODY, headers: once })
  const reused = { status: 422, body: { code: 'idempotency_key_reused' } }
  t.match(await service.call('POST', '/v1/keys', { token, body: { ...BODY, name: 'y' }, headers: once }), reused)
  t.match(await service.call('POST', `/v1/keys/${body.key.id}/rotate`, { token, headers: once }), reused)
  t.match(await service.call('POST', '/v1/keys', { token: await service.token({ subject: 'bob' }), body: { ...BODY, name: 'y' }, headers: once }), { status: 201 }, "another operator's is another one")
  t.match(await service.call('POST', '/v1/keys', { token, body: BODY, headers: { 'idempotency-key': 'x'.repeat(256) } }), { status: 400, body: { errors: [{ field: 'headers.idempotency-key' }] } })
})

t.test('a request that was refused leaves its Idempotency-Key free', async (t) => {
  const service = await startService(t, { MAX_ACTIVE_KEYS_PER_MECHA: '1' })
  const token = await service.token()
  const { key } = await service.issue()
  const issue = () => service.call('POST', '/v1/keys', { token, body: BODY, headers: once })
  t.match(await issue(), { status: 409, body: { code: 'key_limit_reached' } })
  t.match(await service.call('POST', '/v1/keys', { token, body: { ...BODY, mecha: 'other^acmecorp', expires_at: '2020-01-01T00:00:00Z' }, headers: once }), { status: 400 })
  await service.call('POST', `/v1/keys/${key.id}/revoke`, { token })
  t.equal((await issue()).status, 201)
})

t.test('a repeat of a rotation gets the same successor, and the old key\'s end stays', async (t) => {
  const service = await startService(t)
  const token = await service.token()
  const { key } = await service.issue()
  const rotate = () => service.call('POST', `/v1/keys/${key.id}/rotate`, { token, body: { overlap_seconds: 60 }, headers: once })
  const first = await rotate()
  const end = (await service.call('GET', `/v1/keys/${key.id}`, { token })).body.expires_at
  const again = await rotate()
  t.equal(again.status, 201, again.text)
  t.equal(again.body.key.id, first.body.key.id)
  t.not(again.body.plaintext_key, first.body.plaintext_key)
  t.equal((await service.call('GET', `/v1/keys/${key.id}`, { token })).body.expires_at, end)
})

t.test('identical requests at the same instant make one key with one living secret, even at the limit', async (t) => {
  const service = await startService(t, { MAX_ACTIVE_KEYS_PER_MECHA: '1', DATABASE_TIMEOUT: '30s' })
  const token = await service.token()
  for (const round of ['a', 'b', 'c', 'd', 'e']) {
    const body = { ...BODY, mecha: `${round}^acmecorp` }
    const answers = await Promise.all(Array.from({ length: 6 }, () => service.call('POST', '/v1/keys', { token, body, headers: { 'idempotency-key': round } })))
    t.same(answers.map(({ status }) => status), Array(6).fill(201))
    t.equal(new Set(answers.map((answer) => answer.body.key.id)).size, 1)
    const verdicts = []
    for (const answer of answers) verdicts.push(await service.verify(answer.body.plaintext_key))
    t.equal(verdicts.filter((verdict) => verdict.valid).length, 1)
  }
})

t.test('a first use and a repeat at the same instant: either the use comes first, or its secret is dead', async (t) => {
  const service = await startService(t, { MAX_ACTIVE_KEYS_PER_MECHA: '1000', DATABASE_TIMEOUT: '30s' })
  const token = await service.token()
  const gateway = await service.gateway()
  const outcomes = new Set<string>()
  for (let round = 0; round < 40; round++) {
    const headers = { 'idempotency-key': `race-${round}` }
    const first = await service.call('POST', '/v1/keys', { token, body: BODY, headers })
    const [use, repeat] = await Promise.all([
      service.verify(first.body.plaintext_key, {}, gateway),
      service.call('POST', '/v1/keys', { token, body: BODY, headers }),
    ])
    outcomes.add(`${use.valid ? 'used' : use.code}, ${repeat.status}`)
    // Whoever was told that it is good keeps a good secret.
    if (use.valid) t.match(await service.verify(first.body.plaintext_key, {}, gateway), { valid: true })
    if (repeat.status === 201) t.match(await service.verify(repeat.body.plaintext_key, {}, gateway), { valid: true })
  }
  for (const outcome of outcomes) t.ok(['used, 409', 'unknown, 201'].includes(outcome), outcome)
})

t.test('an Idempotency-Key is forgotten after its time, and what is kept of it is a digest', async (t) => {
  const service = await startService(t)
  const token = await service.token()
  const first = await service.call('POST', '/v1/keys', { token, body: BODY, headers: once })
  const { db } = service.database
  const rows = await db.selectFrom('idempotency_keys').selectAll().execute()
  t.equal(JSON.stringify(rows.map((row) => row.digest.toString())).includes(once['idempotency-key']), false)
  await db.updateTable('idempotency_keys').set({ expires_at: new Date(0) }).execute()
  const later = await service.call('POST', '/v1/keys', { token, body: { ...BODY, name: 'another' }, headers: once })
  t.equal(later.status, 201)
  t.not(later.body.key.id, first.body.key.id)
  t.equal((await db.selectFrom('idempotency_keys').selectAll().execute()).length, 1, 'the old one is swept')
})

/** Issues once under each of some Idempotency-Keys, whose slots then expire in this order, some time ago. */
async function expiredSlots(service: Service, token: string, names: readonly string[]): Promise<Buffer[]> {
  const { db } = service.database
  const ids: string[] = []
  for (const name of names) {
    const { body } = await service.call('POST', '/v1/keys', { token, body: { mecha: `${name}^acmecorp` }, headers: { 'idempotency-key': name } })
    ids.push(parsePublicId('mecha', body.key.id)!)
  }
  const digests: Buffer[] = []
  for (const [place, id] of ids.entries()) {
    const expires_at = sql<Date>`now() - make_interval(hours => ${names.length - place})`
    digests.push((await db.updateTable('idempotency_keys').set({ expires_at }).where('key_id', '=', id).returning('digest').executeTakeFirstOrThrow()).digest)
  }
  return digests
}

/** Slots that live, so many that the planner looks for others by an index where it can. */
async function fill({ database: { db } }: Service): Promise<void> {
  await sql`INSERT INTO idempotency_keys
    SELECT sha256(n::text::bytea), request_digest, key_id, now() + n * interval '1 minute' FROM (SELECT * FROM idempotency_keys LIMIT 1) AS one, generate_series(1, 20000) AS n`.execute(db)
  await sql`ANALYZE idempotency_keys`.execute(db)
}

t.test('two requests whose expired slots are each swept by the other do not wait for each other', async (t) => {
  const service = await startService(t)
  const token = await service.token()
  const { db } = service.database
  // The first request sweeps the first ten, in which the second one's slot is, and the other way round.
  const names = Array.from({ length: 20 }, (_, place) => `slot-${place}`)
  const [second, first] = [names[1]!, names[19]!]
  const digests = await expiredSlots(service, token, names)
  await fill(service)
  const mecha = { [first]: `${first}^acmecorp`, [second]: `${second}^acmecorp` }
  const issue = (name: string) => service.call('POST', '/v1/keys', { token, body: { mecha: mecha[name] }, headers: { 'idempotency-key': name } })
  // Whoever removes the third of all slots waits here in the middle of it.
  await sql`CREATE FUNCTION wait_here() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_advisory_xact_lock(1); RETURN OLD; END $$`.execute(db)
  await sql`GRANT EXECUTE ON FUNCTION wait_here() TO mecha_keys_control`.execute(db)
  await sql`CREATE TRIGGER wait_here BEFORE DELETE ON idempotency_keys FOR EACH ROW WHEN (OLD.digest = ${sql.lit(`\\x${digests[2]!.toString('hex')}`)}::bytea) EXECUTE FUNCTION wait_here()`.execute(db)
  t.teardown(() => sql`DROP FUNCTION wait_here() CASCADE`.execute(db))
  // A wait for an advisory lock is for the one above; one for another transaction is for a slot.
  const waiting = async (event: string) => (await sql`SELECT FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'mecha-keys control' AND wait_event = ${event}`.execute(db)).rows.length > 0

  let answers: Promise<Answer[]>
  await db.transaction().execute(async (trx) => {
    await sql`SELECT pg_advisory_xact_lock(1)`.execute(trx)
    const one = issue(first)
    await eventually(() => waiting('advisory'))
    const two = issue(second)
    answers = Promise.all([one, two])
    let isOver = false
    void two.then(() => (isOver = true))
    await eventually(async () => isOver || (await waiting('transactionid')))
  })
  t.match(await answers!, [{ status: 201 }, { status: 201 }])
})

t.test('expired slots are found by an index, however many there are', async (t) => {
  const before = await startService(t)
  const { database } = before
  await expiredSlots(before, await before.token(), ['again'])
  await fill(before)
  await end(before)
  const walks = async () => (await sql<{ walks: string }>`SELECT seq_scan AS walks FROM pg_stat_user_tables WHERE relname = 'idempotency_keys'`.execute(database.db)).rows[0]!.walks
  const walksBefore = await walks()

  const service = await startService(t, {}, database)
  const token = await service.token()
  for (const name of ['again', 'new'])
    t.match(await service.call('POST', '/v1/keys', { token, body: { mecha: 'again^acmecorp' }, headers: { 'idempotency-key': name } }), { status: 201 })
  await end(service)
  t.equal(await walks(), walksBefore)
  t.same(await database.db.selectFrom('idempotency_keys').select('key_id').where('expires_at', '<=', sql<Date>`now()`).execute(), [])
})

/** Ends a service. Its connections have told the server's statistics of everything when they are gone. */
async function end({ app, database: { db } }: Service): Promise<void> {
  await sql`SELECT pg_stat_force_next_flush()`.execute(db)
  await app.close()
  await eventually(async () => (await sql`SELECT FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE 'mecha-keys%'`.execute(db)).rows.length === 0)
}
