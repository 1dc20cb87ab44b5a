/** The kill switch with as many living keys as one Mecha can have. */

import { sql } from 'kysely'
import t from 'tap'
import { createDatabase, type TestDatabase } from '../../helpers/database.js'
import { fresh, startService, type Service } from '../../helpers/service.js'
import { layWire } from '../../helpers/wire.js'

/** `MAX_ACTIVE_KEYS_PER_MECHA` at most. */
const MOST = 10_000

t.test('the kill switch ends 10,000 keys of a Mecha in one call, and each has its event', async (t) => {
  const database = await createDatabase(t)
  const service = await startService(t, { MAX_ACTIVE_KEYS_PER_MECHA: String(MOST) }, database)
  const other = await service.issue({ mecha: 'buyer^acmecorp' })
  await addKeys(database, MOST - 1)
  const { key, plaintext_key } = await service.issue()
  await fresh(service)
  t.match(await service.verify(plaintext_key), { valid: true })
  const start = performance.now()
  const answer = await kill(service, { prefer: 'wait=10' })
  t.comment(`${Math.round(performance.now() - start)} ms`)
  t.match(answer, { status: 200, body: { revoked_count: MOST, remaining: 0, propagation: { replicas: 1, confirmed: 1 } } })
  t.equal(answer.body.revoked.length, 1000, 'the answer is bounded')
  t.equal(answer.body.revoked.filter((id: string) => id === key.id).length, 1, 'the newest come first')
  t.match(await service.verify(plaintext_key), { code: 'revoked' })
  t.match(await service.verify(other.plaintext_key), { valid: true })
  t.match(await tally(database), { living: 0, events: MOST, told: MOST, transactions: MOST / 500 })
  t.match((await kill(service)).body, { revoked: [], revoked_count: 0, remaining: 0, propagation: { replicas: 1, confirmed: 1 } }, 'a repeat changes nothing')
  t.equal((await tally(database)).events, MOST)
})

t.test('a kill switch that is cut off has revoked what it has, and a repeat goes on; its receipt is of both', async (t) => {
  const database = await createDatabase(t)
  const wire = await layWire(t, database.control)
  const service = await startService(t, { PLANES: 'control', MAX_ACTIVE_KEYS_PER_MECHA: String(MOST) }, { ...database, control: wire.through(database.control) })
  await service.issue()
  await addKeys(database, 1999)
  // A replica that has applied nothing of it.
  await sql`INSERT INTO replicas (id, snapshot, seen_at) SELECT gen_random_uuid(), pg_current_snapshot(), now() + interval '1 hour'`.execute(database.db)
  t.match(await service.call('GET', '/v1/keys', { token: await service.token() }), { status: 200 })
  // begin, the Mecha, the clock, the keys in some pieces, the events, commit; then somewhere in the second transaction.
  wire.failAfter(12, 'cut')
  t.match(await kill(service), { status: 503, body: { code: 'database_unavailable' } })
  const { living, events } = await tally(database)
  t.ok(living > 0 && living < 2000, `${living} were left`)
  t.equal(events, 2000 - living, 'what was revoked has its events')
  t.match((await kill(service, { prefer: 'wait=0' })).body, { revoked_count: living, remaining: 0, propagation: { replicas: 1, confirmed: 0 } })
  t.match((await kill(service, { prefer: 'wait=0' })).body, { revoked: [], revoked_count: 0, remaining: 0, propagation: { replicas: 1, confirmed: 0 } }, 'one that finds nothing to do says no more than is true')
})

t.test('a piece that the database cancels is followed by smaller ones', async (t) => {
  const database = await createDatabase(t)
  const service = await startService(t, { PLANES: 'control', MAX_ACTIVE_KEYS_PER_MECHA: String(MOST), DATABASE_TIMEOUT: '1s' }, database)
  await service.issue()
  await addKeys(database, 199)
  // Each key takes eight milliseconds more: all of them together take longer than a statement may, and fifty do not.
  await sql`CREATE FUNCTION slowly() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(0.008); RETURN NEW; END $$`.execute(database.db)
  await sql`CREATE TRIGGER slowly BEFORE UPDATE ON keys FOR EACH ROW EXECUTE FUNCTION slowly()`.execute(database.db)
  t.match(await kill(service), { status: 200, body: { revoked_count: 200, remaining: 0 } })
  t.match(await tally(database), { living: 0, events: 200, transactions: 4 })
})

function kill(service: Service, headers: Record<string, string> = {}) {
  return service.token().then((token) => service.call('POST', '/v1/mechas/sales%5Eacmecorp/revoke-keys', { token, body: { reason: 'all of them' }, headers }))
}

/** What the database says of the keys of `sales^acmecorp`. */
async function tally({ db }: TestDatabase) {
  const { rows } = await sql<{ living: number; events: number; told: number; transactions: number }>`
    SELECT (SELECT count(*)::int FROM keys WHERE mecha = 'sales^acmecorp' AND revoked_at IS NULL) AS living,
           (SELECT count(*)::int FROM events WHERE mecha = 'sales^acmecorp' AND type = 'key.revoked') AS events,
           (SELECT count(DISTINCT key_id)::int FROM changes JOIN keys ON keys.id = key_id WHERE mecha = 'sales^acmecorp') AS told,
           (SELECT count(DISTINCT revoked_at)::int FROM keys WHERE mecha = 'sales^acmecorp') AS transactions`.execute(db)
  return rows[0]!
}

/** Living keys of `sales^acmecorp` beside those that there are: nobody has their secrets. */
async function addKeys({ db }: TestDatabase, count: number): Promise<void> {
  const hash = `$argon2id$v=19$m=1024,t=1,p=1$${'A'.repeat(22)}$${'A'.repeat(43)}`
  await sql`INSERT INTO mechas (handle, org_id) VALUES ('sales^acmecorp', 'acme') ON CONFLICT DO NOTHING`.execute(db)
  await sql`
    INSERT INTO keys (id, kind, org_id, mecha, hash, tag_root, pepper_root, created_at, created_by)
    SELECT gen_random_uuid(), 'mecha', 'acme', 'sales^acmecorp', ${hash}, 'none', 'none', now() - n * interval '1 second', 'test' FROM generate_series(1, ${count}::int) n`.execute(db)
}
