/** The change feed while the database, or the way to it, is not there. */

import { once } from 'node:events'
import { createServer, type AddressInfo } from 'node:net'
import { setTimeout as sleep } from 'node:timers/promises'
import { sql } from 'kysely'
import t from 'tap'
import type { EmbeddedDatabase } from '../../../src/db/embedded/embedded.js'
import { createDatabase, type TestDatabase } from '../../helpers/database.js'
import { eventually } from '../../helpers/eventually.js'
import { copyOf, emptyFolder, kill, startDatabase, startPair } from '../../helpers/own-server.js'
import { fresh, startService, type Answer, type Service } from '../../helpers/service.js'
import { layWire } from '../../helpers/wire.js'

const BOUND = { REVOCATION_MAX_STALENESS: '1s', DATABASE_TIMEOUT: '1s' }

t.test('past the bound, a known key is answered with 503, and with the truth when the database is back', async (t) => {
  const direct = await createDatabase(t)
  const wire = await layWire(t, direct.control)
  const service = await startService(t, BOUND, { ...direct, control: wire.through(direct.control), runtime: wire.through(direct.runtime) })
  const { ask, unseen, revokeByHand } = await held(service, direct)

  wire.cut()
  t.match(await ask(), { status: 200, body: { valid: true } }, 'at first from memory')
  t.match(await unseen(), { status: 503, headers: { 'retry-after': '1' }, body: { code: 'database_unavailable' } }, 'what is not in memory, not at all')
  let answer: Answer
  await eventually(async () => (answer = await ask()).status !== 200)
  t.match(answer!, { status: 503, headers: { 'retry-after': '1' }, body: { code: 'feed_stale' } })
  await revokeByHand()
  wire.restore()
  await eventually(async () => (answer = await ask()).status === 200)
  t.same(answer!.body, { valid: false, code: 'revoked' }, 'its first answer is that it was revoked meanwhile')
})

t.test('with the feed alone cut off, past the bound the database answers, and a revocation counts at once', async (t) => {
  const database = await createDatabase(t)
  const wire = await layWire(t, database.runtime)
  const service = await startService(t, { ...BOUND, DATABASE_DIRECT_URL: wire.through(database.runtime) }, database)
  const { ask, revokeByHand } = await held(service, database)
  wire.cut()
  await eventually(async () => (await service.call('GET', '/metrics')).text.includes('mecha_keys_feed_fresh 0'))
  t.match(await ask(), { status: 200, body: { valid: true } })
  await revokeByHand()
  t.same((await ask()).body, { valid: false, code: 'revoked' })
})

t.test('a database that is away is asked for less and less, by the feed too', async (t) => {
  let asked = 0
  const nobody = createServer((socket) => (asked++, socket.on('error', () => {}).destroy())).listen(0, '127.0.0.1')
  await once(nobody, 'listening')
  t.teardown(() => nobody.close())
  const database = await createDatabase(t)
  const away = Object.assign(new URL(database.runtime), { port: (nobody.address() as AddressInfo).port }).href
  await startService(t, { DATABASE_DIRECT_URL: away }, database)
  await eventually(() => asked > 0)
  const before = asked
  await sleep(2000)
  // After 50, 100, 200, 400 and 800 ms, and from then on each second.
  t.ok(asked - before >= 2 && asked - before <= 6, `${asked - before} times in 2 s`)
})

for (const [how, end] of [['orderly', (database: EmbeddedDatabase) => database.stop()], ['by SIGKILL', kill]] as const)
  t.test(`a database that ends ${how} and starts again is followed again`, async (t) => {
    const folder = emptyFolder(t)
    const first = await startDatabase(t, folder)
    const wire = await layWire(t, first.database.runtime)
    const service = await startService(t, { REVOCATION_MAX_STALENESS: '1m' }, { ...first.database, control: wire.through(first.database.control), runtime: wire.through(first.database.runtime) })
    const { key, ask } = await held(service, first.database)
    const token = await service.token()
    await end(first.embedded, folder)
    t.match(await ask(), { status: 200, body: { valid: true } }, 'known while the database is away')
    const second = await startDatabase(t, folder)
    wire.leadTo(second.database.runtime)
    let answer: Answer
    await eventually(async () => (answer = await service.call('POST', `/v1/keys/${key.id}/revoke`, { token, headers: { prefer: 'wait=10' } })).status === 200)
    t.match(answer!.body, { status: 'revoked' })
    await eventually(async () => (await service.call('GET', `/v1/keys/${key.id}`, { token })).body.propagation.confirmed > 0)
    t.same((await ask()).body, { valid: false, code: 'revoked' })
  })

t.test('after a failover to a database that gives numbers of transactions again, nothing revoked there is missed', async (t) => {
  const folder = emptyFolder(t)
  const before = await startDatabase(t, folder)
  const seeding = await startService(t, {}, before.database)
  const { key, plaintext_key } = await seeding.issue()
  const gateway = await seeding.gateway()
  await seeding.verify(plaintext_key, {}, gateway)
  await seeding.app.close()
  await before.embedded.stop()
  // A standby that had received this much, and is promoted: the primary goes on without it.
  const copy = copyOf(t, folder)
  const primary = await startDatabase(t, folder)
  const wire = await layWire(t, primary.database.runtime)
  const service = await startService(t, { ROOT_SECRETS: seeding.config.ROOT_SECRETS!.join() }, { ...primary.database, control: wire.through(primary.database.control), runtime: wire.through(primary.database.runtime) })
  for (let i = 0; i < 100; i++) await sql`UPDATE keys SET name = ${String(i)} WHERE kind = 'gateway'`.execute(primary.database.db)
  await fresh(service)
  t.match(await service.verify(plaintext_key, {}, gateway), { valid: true })

  const seenUpTo = await nextTransaction(primary.database)
  await primary.embedded.stop()
  const promoted = await startDatabase(t, copy)
  await sql`UPDATE keys SET revoked_at = now(), revoked_by = 'test' WHERE kind = 'mecha'`.execute(promoted.database.db)
  t.ok((await nextTransaction(promoted.database)) < seenUpTo, 'what revoked it has a number that the replica has seen used up')
  wire.leadTo(promoted.database.runtime)
  await eventually(async () => (await service.verify(plaintext_key, {}, gateway)).code === 'revoked')
  t.equal((await service.verify(plaintext_key, {}, gateway)).code, 'revoked', `${key.id} stays so`)
})

t.test('failed over to a standby that is promoted, what was revoked before stays so and what is revoked there is refused', async (t) => {
  const { primary, caughtUp, killPrimary, promote } = await startPair(t)
  const wire = await layWire(t, primary.runtime)
  const service = await startService(t, { REVOCATION_MAX_STALENESS: '1m' }, { ...primary, control: wire.through(primary.control), runtime: wire.through(primary.runtime) })
  const { ask, key } = await held(service, primary)
  const early = await service.issue({ mecha: 'early^acmecorp' })
  await service.verify(early.plaintext_key)
  const token = await service.token()
  t.match((await service.call('POST', `/v1/keys/${early.key.id}/revoke`, { token })).body, { status: 'revoked', propagation: { replicas: 1, confirmed: 1 } })
  await caughtUp()

  await killPrimary()
  t.match(await ask(), { status: 200, body: { valid: true } }, 'known while there is no primary')
  wire.leadTo((await promote()).runtime)
  let answer: Answer
  await eventually(async () => (answer = await service.call('POST', `/v1/keys/${key.id}/revoke`, { token, headers: { prefer: 'wait=10' } })).status === 200)
  await eventually(async () => (await service.call('GET', `/v1/keys/${key.id}`, { token })).body.propagation.confirmed > 0)
  t.match(answer!.body, { status: 'revoked' }, 'the promoted one takes writes')
  t.same((await ask()).body, { valid: false, code: 'revoked' })
  t.same(await service.verify(early.plaintext_key), { valid: false, code: 'revoked' })
})

/** A key that the service has in memory and one that it has not, and what is done with them. */
async function held(service: Service, direct: TestDatabase) {
  const [gateway, { key, plaintext_key }, other] = [await service.gateway(), await service.issue(), await service.issue()]
  const verify = (presented: string) => () => service.call('POST', '/v1/verify', { token: gateway, body: { key: presented } })
  const ask = verify(plaintext_key)
  await fresh(service)
  if ((await ask()).body.valid !== true) throw new Error('the key is not valid to begin with')
  const revokeByHand = () => sql`UPDATE keys SET revoked_at = now(), revoked_by = 'test' WHERE kind = 'mecha'`.execute(direct.db)
  return { key, ask, unseen: verify(other.plaintext_key), revokeByHand }
}

async function nextTransaction({ db }: TestDatabase): Promise<bigint> {
  const { rows } = await sql<{ xid: string }>`SELECT pg_snapshot_xmax(pg_current_snapshot())::text AS xid`.execute(db)
  return BigInt(rows[0]!.xid)
}
