/** What could be known, and what could not, by a replica that followed the change feed on a standby, and what one far away is like. `docs/scaling.md` reports it. */

import { once } from 'node:events'
import { connect as connectTo, createServer, type AddressInfo, type Socket } from 'node:net'
import { setTimeout as sleep } from 'node:timers/promises'
import { sql } from 'kysely'
import { Client } from 'pg'
import t, { type Test } from 'tap'
import { PLAN_ONCE, POLL } from '../../../src/runtime/changes/feed.js'
import { createDatabase } from '../../helpers/database.js'
import { eventually } from '../../helpers/eventually.js'
import { costs } from '../../helpers/metrics.js'
import { startPair } from '../../helpers/own-server.js'
import { fresh, startService } from '../../helpers/service.js'

const CHANGES = 100
/** Between a replica and a database far away, one way. */
const AWAY_MS = 40
const NOBODY = '00000000-0000-0000-0000-000000000000'

t.test('the change feed on a standby', async (t) => {
  const { primary, caughtUp, standby } = await startPair(t)
  const service = await startService(t, {}, primary)
  const { key } = await service.issue()
  await caughtUp()
  const copy = await standby()
  const follower = await connect(t, copy.runtime)
  await follower.query(PLAN_ONCE)
  const poll = async (snapshot: string | null) => (await follower.query<{ snapshot: string; changed: { id: string }[]; history: string; is_read_only: boolean }>(POLL.text, [snapshot, NOBODY, false, false, null, null, null])).rows[0]!

  await t.test('nobody can listen there, and nobody can confirm there', async (t) => {
    await t.rejects(follower.query('LISTEN mecha_keys_changes'), { message: 'cannot execute LISTEN during recovery' })
    await t.rejects(follower.query("SELECT confirm_feed($1, decode(repeat('00', 32), 'hex'), pg_current_snapshot(), current_history(), 10000)", [NOBODY]), { message: 'cannot execute INSERT in a read-only transaction' })
  })

  await t.test('a poll finds there what is committed on the primary, in milliseconds', async (t) => {
    const times: number[] = []
    let last = await poll(null)
    for (let n = 0; n < CHANGES; n++) {
      await sql`UPDATE keys SET name = ${String(n)} WHERE kind = 'mecha'`.execute(primary.db)
      const committedAt = performance.now()
      for (let page = await poll(last.snapshot); ; page = await poll(last.snapshot)) {
        const isSeen = page.changed.length > 0
        last = page
        if (isSeen) break
        await sleep(1)
      }
      times.push(performance.now() - committedAt)
    }
    times.sort((a, b) => a - b)
    t.comment(`a change was seen on the standby ${times[CHANGES / 2]!.toFixed(1)} ms after its commit in the median, ${times.at(-1)!.toFixed(1)} at most`)
    t.ok(last.is_read_only)
  })

  await t.test('it names another history than the primary, so no receipt would count who follows there', async (t) => {
    const { rows } = await sql<{ history: string }>`SELECT current_history() AS history`.execute(primary.db)
    t.not((await poll(null)).history, rows[0]!.history)
  })

  await t.test('a standby that is cut off answers as before, and nothing in its answer says so', async (t) => {
    await sql`ALTER SYSTEM SET primary_conninfo = ''`.execute(copy.db)
    await sql`SELECT pg_reload_conf()`.execute(copy.db)
    await eventually(async () => (await sql<{ count: string }>`SELECT count(*) FROM pg_stat_replication`.execute(primary.db)).rows[0]!.count === '0')
    const before = await poll((await poll(null)).snapshot)
    const answer = await service.call('POST', `/v1/keys/${key.id}/revoke`, { token: await service.token() })
    t.match(answer.body.propagation, { replicas: 1, confirmed: 1, complete: true })
    const after = await poll(before.snapshot)
    t.same({ ...after, now: 0 }, { ...before, now: 0 }, 'nothing has changed, by what it says')
    const { rows } = await sql<{ has_all: boolean; revoked_at: Date | null }>`SELECT pg_last_wal_receive_lsn() = pg_last_wal_replay_lsn() AS has_all, revoked_at FROM keys WHERE kind = 'mecha'`.execute(copy.db)
    t.same(rows, [{ has_all: true, revoked_at: null }], 'it has applied all that it was sent, and takes the key for good')
  })
})

async function connect(t: Test, url: string): Promise<Client> {
  const client = new Client({ connectionString: url })
  await client.connect()
  t.teardown(() => client.end())
  return client
}

t.test('a replica far from the primary answers from memory at once, and a revocation counts there some round trips later', async (t) => {
  const database = await createDatabase(t)
  const control = await startService(t, { PLANES: 'control' }, database)
  const url = await farAway(t, database.runtime)
  const replica = await startService(t, { ROOT_SECRETS: control.config.ROOT_SECRETS!.join(), PLANES: 'runtime', RUNTIME_DATABASE_URL: url }, database)
  await fresh(replica)
  const [{ key, plaintext_key }, gateway] = [await control.issue(), await control.gateway()]
  // The pool's connections are made, and the gateway is known.
  await replica.verify((await control.issue()).plaintext_key, {}, gateway)
  const timed = async (act: () => Promise<unknown>) => {
    const start = performance.now()
    await act()
    return Math.round(performance.now() - start)
  }
  const verify = async (expected: object) => void t.match(await replica.verify(plaintext_key, {}, gateway), expected)
  const first = await timed(() => verify({ valid: true }))
  const asked = (await costs(replica)).queries
  const again = await timed(() => verify({ valid: true }))
  t.equal((await costs(replica)).queries, asked, 'nobody was asked')
  const receipt = await timed(async () => {
    const { body } = await control.call('POST', `/v1/keys/${key.id}/revoke`, { token: await control.token(), headers: { prefer: 'wait=10' } })
    t.match(body.propagation, { replicas: 1, confirmed: 1, complete: true })
  })
  await verify({ valid: false, code: 'revoked' })
  t.comment(`${2 * AWAY_MS} ms away: a first verify took ${first} ms, the next ${again} ms, and a receipt ${receipt} ms`)
  t.ok(first >= 2 * AWAY_MS && receipt >= 2 * AWAY_MS)
})

/** A database's URL by a way that takes some time. */
async function farAway(t: Test, url: string): Promise<string> {
  const { hostname, port } = new URL(url)
  const open = new Set<Socket>()
  const server = createServer((near) => {
    const far = connectTo(Number(port), hostname)
    for (const [from, into] of [[near, far], [far, near]] as const) {
      open.add(from)
      from.on('data', (bytes) => void setTimeout(() => into.write(bytes), AWAY_MS)).on('error', () => {}).on('close', () => setTimeout(() => into.destroy(), AWAY_MS))
    }
  }).listen(0, '127.0.0.1')
  await once(server, 'listening')
  t.teardown(() => (open.forEach((socket) => socket.destroy()), server.close()))
  return Object.assign(new URL(url), { host: `127.0.0.1:${(server.address() as AddressInfo).port}` }).href
}
