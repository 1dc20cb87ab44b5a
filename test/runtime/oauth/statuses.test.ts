/** The statuses of exchanged keys as a replica has them in memory: that reading on costs what changed, and misses nothing. */

import { setTimeout as sleep } from 'node:timers/promises'
import { generateKeyPair } from 'jose'
import { sql, type Kysely } from 'kysely'
import { Client } from 'pg'
import { pino } from 'pino'
import t, { type Test } from 'tap'
import { RUN_LOCK } from '../../../src/db/followers.js'
import { openDatabase } from '../../../src/db/pool.js'
import type { Database } from '../../../src/db/tables.js'
import { newId } from '../../../src/credentials/id.js'
import { Clock } from '../../../src/clock.js'
import type { Keyring } from '../../../src/runtime/oauth/keyring.js'
import { StatusList } from '../../../src/runtime/oauth/status-list.js'
import { Statuses, type StatusesParts } from '../../../src/runtime/oauth/statuses.js'
import { findStatusChanges, findStatuses, INVALID, SUSPENDED, VALID } from '../../../src/runtime/oauth/store.js'
import { createDatabase, type TestDatabase } from '../../helpers/database.js'
import { eventually } from '../../helpers/eventually.js'

const RUN = 7
/** SQLSTATE of a lock that was waited for as long as it may be. */
const LOCK_NOT_AVAILABLE = '55P03'
const HASH = `$argon2id$v=19$m=64,t=1,p=1$${'A'.repeat(22)}$${'A'.repeat(43)}`

t.test('after a change, what is read of a large list is what changed', async (t) => {
  const { database, runtime } = await open(t)
  await makeKeys(database.db, 6000)
  await sql`ANALYZE keys, token_status`.execute(database.db)
  let read = 0
  const statuses = followed(t, runtime, {
    findChanges: (since) =>
      runtime.transaction().execute(async (trx) => {
        const before = await rowsRead(trx)
        const found = await findStatusChanges(trx, since)
        read = (await rowsRead(trx)) - before
        return found
      }),
  })
  await statuses.look()
  const id = await keyAt(database.db, 4321)
  const costs = async (name: string) => {
    await statuses.look()
    t.ok(read <= 20, `${name}: ${read} rows`)
  }
  await costs('nothing')
  await database.db.updateTable('keys').set({ enabled: false }).where('id', '=', id).execute()
  await costs('a key that is disabled')
  t.equal(statusAt(statuses, 4321), SUSPENDED)
  await database.db.updateTable('keys').set({ enabled: true, expires_at: sql<Date>`clock_timestamp() + interval '500 milliseconds'` }).where('id', '=', id).execute()
  await costs('a key that is given an end')
  t.equal(statusAt(statuses, 4321), VALID)
  await sleep(500)
  await costs('a key that expires')
  t.equal(statusAt(statuses, 4321), INVALID)
  await makeKeys(database.db, 1)
  await costs('a key that is exchanged for the first time')
  t.same([statuses.fullReads, statuses.slices], [1, 1])
})

t.test('whatever happens, what was read on is what would be read in full', async (t) => {
  const { database, runtime } = await open(t)
  const { db } = database
  const seed = Math.floor(Math.random() * 2 ** 31)
  t.comment(`seed ${seed}`)
  const random = randomOf(seed)
  const one = <T>(of: readonly T[]): T => of[Math.floor(random() * of.length)]!
  await makeKeys(db, 20)
  const statuses = followed(t, runtime)
  await statuses.look()
  const ends = () => one([sql<null>`NULL`, sql`clock_timestamp() + interval '15 milliseconds'`, sql`clock_timestamp() - interval '1 second'`, sql`clock_timestamp() + interval '1 hour'`])
  const some = sql`(SELECT id FROM keys WHERE revoked_at IS NULL ORDER BY random() LIMIT 1 FOR UPDATE SKIP LOCKED)`
  const changes = {
    revoke: () => sql`UPDATE keys SET revoked_at = clock_timestamp(), revoked_by = 'test' WHERE id = ${some}`,
    disable: () => sql`UPDATE keys SET enabled = false WHERE id = ${some}`,
    enable: () => sql`UPDATE keys SET enabled = true WHERE id = ${some}`,
    end: () => sql`UPDATE keys SET expires_at = ${ends()} WHERE id = ${some}`,
    erase: () => sql`WITH erased AS (DELETE FROM keys WHERE id = ${some} RETURNING id) UPDATE token_status SET key_erased_at = clock_timestamp() WHERE key_id IN (SELECT id FROM erased)`,
    free: () => sql`UPDATE token_status SET key_id = NULL WHERE idx = (SELECT idx FROM token_status ORDER BY random() LIMIT 1 FOR UPDATE SKIP LOCKED)`,
  }
  const names = Object.keys(changes) as (keyof typeof changes)[]
  const other = openDatabase({ url: database.owner, size: 3, timeoutMs: 120_000, name: 'test' })
  t.teardown(() => other.destroy())
  /** Transactions that are open: what they did is seen when they are over, in whatever order. */
  const under: (() => Promise<void>)[] = []
  t.teardown(() => Promise.all(under.map((finish) => finish())))
  const begin = async () => {
    let commit!: () => void
    const committed = new Promise<void>((resolve) => (commit = resolve))
    await new Promise<void>((begun, failed) => {
      const over = other.transaction().execute(async (trx) => {
        await lockBriefly(trx)
        await changes[one(names)]().execute(trx)
        under.push(() => (commit(), over))
        begun()
        await committed
      })
      over.catch(failed)
    })
  }
  const finish = () => under.splice(Math.floor(random() * under.length), 1)[0]!()
  for (let i = 0; i < 150; i++) {
    const dice = random()
    if (dice >= 0.3 && dice < 0.4 && under.length > 0) await finish()
    else if (dice >= 0.2 && dice < 0.3 && under.length < 3) await unlessLocked(begin())
    else
      await unlessLocked(db.transaction().execute(async (trx) => {
        await lockBriefly(trx)
        await (dice < 0.2 ? makeKeys(trx, 1, ends()) : changes[one(names)]().execute(trx))
      }))
    if (random() < 0.3) await isTheSame(db, runtime, statuses)
  }
  while (under.length > 0) await finish()
  await isTheSame(db, runtime, statuses)
  t.equal(statuses.fullReads, 1)

  /** What another transaction has locked is given up soon: that one ends in a later step, and would be waited for for ever. */
  async function lockBriefly(trx: Kysely<Database>): Promise<void> {
    await sql`SET LOCAL lock_timeout = '100ms'`.execute(trx)
  }

  async function unlessLocked(step: Promise<unknown>): Promise<void> {
    await step.catch((error: { readonly code?: string }) => {
      if (error.code !== LOCK_NOT_AVAILABLE) throw error
    })
  }

  /** Where a key expires between the two readings they differ, and agree the next time. */
  async function isTheSame(db: Kysely<Database>, runtime: Kysely<Database>, statuses: Statuses): Promise<void> {
    await eventually(async () => {
      await statuses.look()
      const anew = followed(t, runtime)
      await anew.look()
      anew.stop()
      // An index that is free may tell of the key that it was of.
      const rows = await db.selectFrom('token_status').select('idx').where('key_id', 'is not', null).execute()
      return rows.every(({ idx }) => statusAt(statuses, idx) === statusAt(anew, idx))
    })
  }
})

t.test('a list is read in full in slices, and again where nobody can say what has changed, but for nothing else', async (t) => {
  const { database, runtime, follow } = await open(t)
  const { db } = database
  await sql`INSERT INTO token_status (idx, key_id) SELECT n, gen_random_uuid() FROM generate_series(0, 19999) AS n`.execute(db)
  const statuses = followed(t, runtime)
  await statuses.look()
  t.same([statuses.fullReads, statuses.slices], [1, 3])
  t.same([0, 8191, 8192, 19_999, 20_000].map((index) => statusAt(statuses, index)), [INVALID, INVALID, INVALID, INVALID, VALID])
  const again = async (name: string, happen: () => Promise<unknown>, fullReads: number) => {
    const before = statuses.fullReads
    await happen()
    await statuses.look()
    t.equal(statuses.fullReads - before, fullReads, name)
    await statuses.look()
    t.equal(statuses.fullReads - before, fullReads, `${name}, once`)
  }
  const change = (count: number) => sql`INSERT INTO changes (key_id) SELECT gen_random_uuid() FROM generate_series(1, ${count}::int)`.execute(db)
  await again('ten thousand changes', () => change(10_000), 0)
  await again('more changes', () => change(10_001), 1)
  await again('every key', () => sql`INSERT INTO changes (key_id) VALUES (NULL)`.execute(db), 1)
  await again('changes that were removed by hand', () => sql`DELETE FROM changes`.execute(db), 1)
  await again('changes that were swept', async () => {
    const now = () => sql<{ snapshot: string; xmin: string }>`SELECT pg_current_snapshot()::text AS snapshot, pg_snapshot_xmin(pg_current_snapshot())::text AS xmin`.execute(db)
    const { xmin } = (await now()).rows[0]!
    // Not while a transaction is open that was then, in another database of the server either.
    await eventually(async () => (await change(1)) && BigInt((await now()).rows[0]!.xmin) > BigInt(xmin))
    await sql`SELECT sweep_changes(pg_current_snapshot(), '0', 10000)`.execute(db)
  }, 1)
  await again('another history', () => sql`VACUUM FULL changes`.execute(db), 1)
  await again('a run that nobody follows in any more', async () => {
    await follow.end()
    statuses.feed.run = undefined
    await statuses.look()
    const client = await followRun(t, database, RUN + 1)
    statuses.feed.run = RUN + 1
    t.ok(client)
  }, 2)
  await again('a replica whose feed is lost, where another one follows', async () => (statuses.feed.run = undefined), 0)
})

t.test('a database that was restored elsewhere has numbers of transactions that are to come there, which are forgotten when it is accepted', async (t) => {
  const { database, runtime } = await open(t)
  const { db } = database
  await makeKeys(db, 3)
  const future = sql`((pg_current_xact_id()::text::bigint + 1000000)::text)::xid8`
  await sql`UPDATE token_status SET xid = ${future}`.execute(db)
  await sql`INSERT INTO changes (key_id, xid) VALUES (gen_random_uuid(), ${future})`.execute(db)
  await sql`UPDATE change_horizon SET swept_below = ${future}`.execute(db)
  await sql`SELECT accept_database('test')`.execute(db)
  const statuses = followed(t, runtime)
  // A transaction that is open anywhere on the server holds back what a snapshot has seen, and a full read may have to follow for as long as it is.
  await eventually(async () => {
    const before = statuses.fullReads
    await statuses.look()
    return before > 0 && statuses.fullReads === before
  })
  const { rows } = await sql`SELECT FROM token_status WHERE xid IS NOT NULL UNION ALL SELECT FROM changes WHERE key_id IS NOT NULL`.execute(db)
  t.equal(rows.length, 0)
})

t.test('a change that nothing told of is found by comparison', async (t) => {
  const { database, runtime } = await open(t)
  await makeKeys(database.db, 3)
  const statuses = followed(t, runtime, { afterMs: 200 })
  await statuses.look()
  await sql`ALTER TABLE keys DISABLE TRIGGER keys_changed`.execute(database.db)
  await database.db.updateTable('keys').set({ revoked_at: new Date(), revoked_by: 'psql' }).where('id', '=', await keyAt(database.db, 1)).execute()
  await eventually(async () => {
    await statuses.look()
    return statusAt(statuses, 1) === INVALID
  })
  t.equal(statuses.fullReads, 1)
  // Nobody asks any more.
  await sleep(500)
  await statuses.look()
  t.equal(statuses.fullReads, 2, 'and what nobody asks for is forgotten')
})

t.test('who asks while all of it is read waits for a while, and is given the list when it has been', async (t) => {
  const position = { history: 'one', snapshot: '1:1:', now: new Date(), places: 3, indexes: [], statuses: [], isComplete: true }
  let finish!: () => void
  const slow = new Promise<void>((resolve) => (finish = resolve))
  let reads = 0
  const statuses = new Statuses({
    findChanges: async (since) => ({ ...position, isComplete: since !== undefined }),
    find: async () => {
      reads++
      await slow
      return { history: 'one', indexes: [1], statuses: [INVALID] }
    },
    feed: { run: 1 }, afterMs: 60_000, log: pino({ level: 'silent' }),
  })
  const alive = setInterval(() => {}, 1000)
  t.teardown(() => (statuses.stop(), clearInterval(alive)))
  const keyring = { keys: async () => ({ signer: await signer() }) } as unknown as Keyring
  const list = new StatusList({ statuses, keyring, issuer: () => 'https://keys.example.com', maxStalenessMs: 10_000, timeoutMs: 200, clock: new Clock() })
  const both = await Promise.allSettled([list.current(), list.current()])
  for (const one of both) t.match(one, { status: 'rejected', reason: { code: 'database_unavailable' } })
  await t.rejects(list.current(), { code: 'database_unavailable' })
  finish()
  const { jwt } = await list.current()
  t.equal((await list.current()).jwt, jwt)
  t.equal(reads, 1)
})

async function signer() {
  const { privateKey } = await generateKeyPair('EdDSA')
  return { kid: 'test', alg: 'EdDSA', privateKey }
}

/** A database of its own, its runtime role, and somebody who follows a run of its server. */
async function open(t: Test): Promise<{ database: TestDatabase; runtime: Kysely<Database>; follow: Client }> {
  const database = await createDatabase(t)
  const runtime = openDatabase({ url: database.runtime, size: 2, timeoutMs: 30_000, name: 'test' })
  t.teardown(() => runtime.destroy())
  await sql`INSERT INTO mechas (handle, org_id) VALUES ('sales^acmecorp', 'acme')`.execute(database.db)
  return { database, runtime, follow: await followRun(t, database, RUN) }
}

async function followRun(t: Test, { runtime }: TestDatabase, run: number): Promise<Client> {
  const client = new Client({ connectionString: runtime })
  await client.connect()
  t.teardown(() => client.end())
  await client.query('SELECT pg_advisory_lock_shared($1, $2)', [RUN_LOCK, run])
  return client
}

interface Counted extends Statuses {
  fullReads: number
  slices: number
  feed: { run: number | undefined }
}

/** Statuses that count what they read in full. */
function followed(t: Test, db: Kysely<Database>, parts: Partial<StatusesParts> = {}): Counted {
  const counts = { fullReads: 0, slices: 0 }
  const feed = { run: RUN } as { run: number | undefined }
  const find: StatusesParts['find'] = (from, below) => {
    counts.slices++
    return findStatuses(db, from, below)
  }
  const log = Object.assign(pino({ level: 'silent' }), { info: () => void counts.fullReads++ })
  const statuses = new Statuses({ findChanges: (since) => findStatusChanges(db, since), find, feed, afterMs: 3_600_000, log, ...parts })
  t.teardown(() => statuses.stop())
  for (const name of ['fullReads', 'slices'] as const) Object.defineProperty(statuses, name, { get: () => counts[name] })
  return Object.assign(statuses, { feed }) as Counted
}

/** Keys with an index each, by hand. */
async function makeKeys(db: Kysely<Database>, count: number, expiresAt = sql<unknown>`NULL`): Promise<void> {
  const ids = Array.from({ length: count }, newId)
  await sql`
    INSERT INTO keys (id, kind, org_id, mecha, hash, tag_root, pepper_root, created_at, created_by, expires_at)
    SELECT id, 'mecha', 'acme', 'sales^acmecorp', ${HASH}, 'root', 'root', clock_timestamp() - interval '1 hour', 'test', ${expiresAt} FROM unnest(${ids}::uuid[]) AS id`.execute(db)
  if (count === 1) await sql`SELECT token_status_place(${ids[0]})`.execute(db)
  else await sql`INSERT INTO token_status (idx, key_id) SELECT n - 1, id FROM unnest(${ids}::uuid[]) WITH ORDINALITY AS made (id, n)`.execute(db)
}

/** How many rows its connection has read of which PostgreSQL has not made its sums yet. */
async function rowsRead(trx: Kysely<Database>): Promise<number> {
  const { rows } = await sql<{ read: number }>`
    SELECT sum(seq_tup_read + idx_tup_fetch)::int AS read FROM pg_stat_xact_user_tables WHERE relname IN ('keys', 'token_status', 'changes')`.execute(trx)
  return rows[0]!.read
}

async function keyAt(db: Kysely<Database>, index: number): Promise<string> {
  return (await db.selectFrom('token_status').select('key_id').where('idx', '=', index).executeTakeFirstOrThrow()).key_id!
}

function statusAt(statuses: Statuses, index: number): number {
  return (statuses.copy()[Math.floor(index / 4)]! >> (2 * (index % 4))) & 3
}

/** Mulberry32. */
function randomOf(seed: number): () => number {
  let state = seed
  return () => {
    state = (state + 0x6d2b79f5) | 0
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state)
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32
  }
}
