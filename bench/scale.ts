/**
 * `npm run bench -- --only scale`: what calls make PostgreSQL read when its tables are large. Blocks of 8 KiB are counted, by
 * `pg_stat_statements`, of the statements that the service really sends: they are the same on a busy machine, and a plan that
 * becomes a walk through a table shows at any size. The tables are filled once and kept below `bench/results/`.
 */

import { randomUUID } from 'node:crypto'
import { existsSync, mkdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { sql, type Kysely } from 'kysely'
import { Client } from 'pg'
import { missingRootSecret, rootSecretsStatus } from '../src/control/keys/root-secrets.js'
import type { Database } from '../src/db/tables.js'
import { PACKAGE_ROOT } from '../src/package-root.js'
import { recordRefusals, recordUses } from '../src/runtime/usage/store.js'
import { familyCpu, findPostmaster, processCpu } from './cpu.js'
import { fillTable, seedKeys } from './seed.js'
import { createWorld, ORGANIZATION, type BenchDatabase, type Service, type World } from './world.js'

/** One call, and what it may make PostgreSQL read. */
interface Line {
  readonly name: string
  /** Most blocks that its statements may read together. */
  readonly blocks: number
  readonly act: (turn: number) => Promise<unknown>
}

interface Cost {
  readonly blocks: number
  /** PostgreSQL's time. */
  readonly ms: number
  /** The beginning of the statement that reads most. */
  readonly statement: string
}

/** How often each call is made. What is counted less often was sent by something else meanwhile. */
const TURNS = 10
/** Where few rows of many are asked for, they are the oldest: an index that does not know them would walk past all others. */
const RARE = 40

/** Measures every line. Resolves to whether all of them read as little as they may. */
export async function measureScale(keys: number): Promise<boolean> {
  const folder = join(PACKAGE_ROOT, 'bench', 'results', `scale-${keys}`)
  mkdirSync(folder, { recursive: true, mode: 0o755 })
  const world = await createWorld({ folder, flags: ['shared_preload_libraries=pg_stat_statements', 'max_wal_size=8GB'] })
  try {
    const database = await world.database('scale')
    await fillOnce(database, world, join(folder, 'filled'), keys)
    // Rows that an earlier run wrote are read to see whether they count, until then.
    await sql`VACUUM keys`.execute(database.db)
    await sql`CREATE EXTENSION IF NOT EXISTS pg_stat_statements`.execute(database.db)
    await exchangeAll(database.db)
    const service = await world.service(database, { CACHE_MAX_KEYS: '100', MAX_ACTIVE_KEYS_PER_MECHA: '1000' })
    process.stdout.write(`| Call, at ${keys} keys | Blocks, at most | Blocks | PostgreSQL's ms | The statement that reads most |\n|---|---|---|---|---|\n`)
    let isFlat = true
    for (const { name, blocks, act } of [...(await controlLines(service, keys)), ...(await runtimeLines(database, world, service, keys))]) {
      const cost = await costOf(database.db, act)
      const isOver = cost.blocks > blocks
      isFlat &&= !isOver
      process.stdout.write(`| ${name} | ${blocks} | ${isOver ? `**${cost.blocks}**` : cost.blocks} | ${cost.ms} | ${cost.blocks > 0 ? `\`${cost.statement}\`` : ''} |\n`)
    }
    process.stdout.write(`\nthe status list of ${keys} exchanged keys, after a change: ${await statusListCost(database, service, keys)}\n`)
    return isFlat
  } finally {
    await world.end()
  }
}

async function costOf(db: Kysely<Database>, act: Line['act']): Promise<Cost> {
  await act(0)
  await sql`SELECT pg_stat_statements_reset()`.execute(db)
  for (let turn = 1; turn <= TURNS; turn++) await act(turn)
  const { rows } = await sql<Cost>`
    SELECT (sum(shared_blks_hit + shared_blks_read) / ${TURNS})::int AS blocks, round((sum(total_exec_time) / ${TURNS})::numeric, 1)::float AS ms,
           left(regexp_replace((array_agg(query ORDER BY shared_blks_hit + shared_blks_read DESC))[1], '[\\s|\`]+', ' ', 'g'), 60) AS statement
    FROM pg_stat_statements WHERE dbid = (SELECT oid FROM pg_database WHERE datname = current_database()) AND calls >= ${TURNS}
      AND query NOT LIKE '%pg_stat_statements%'`.execute(db)
  return rows[0]!
}

async function controlLines(service: Service, keys: number): Promise<Line[]> {
  const ofCrew = await service.operatorOf('rare')
  const ofCrews = await service.operatorOf('rare', 'bench', 'nobody')
  const get = (name: string, path: string, blocks: number, headers?: Record<string, string>): Line => ({ name, blocks, act: () => service.call('GET', path, undefined, headers) })
  const ago = (seconds: number) => new Date(Date.now() - seconds * 1000).toISOString()
  // Fifty rows, each with what is known of its use.
  const page = 320
  const statuses = ['active', 'disabled', 'expired', 'revoked']
  return [
    get('list keys', '/v1/keys', page),
    ...statuses.map((status) => get(`list keys, ${status}`, `/v1/keys?status=${status}`, page + 60)),
    get('list keys of a crew', '/v1/keys', page + 60, ofCrew),
    ...statuses.map((status) => get(`list keys of a crew, ${status}`, `/v1/keys?status=${status}`, page + 60, ofCrew)),
    get('list keys of several crews', '/v1/keys', page + 60, ofCrews),
    ...statuses.map((status) => get(`list keys of several crews, ${status}`, `/v1/keys?status=${status}`, page + 60, ofCrews)),
    get('list keys of a Mecha', '/v1/keys?mecha=filler1%5Ebench', page),
    ...['', '?status=active', '?status=revoked'].map((query) => get(`list gateways ${query}`, `/v1/gateways${query}`, page)),
    get('events', '/v1/events', 30),
    get('events of a type', '/v1/events?type=key.updated', 90),
    get('events of an actor', '/v1/events?actor=operator:rare', 90),
    get('events of the last second', `/v1/events?since=${ago(1)}`, 90),
    get('events since yesterday', `/v1/events?since=${ago(86_400)}`, 90),
    get('events of ten minutes', `/v1/events?since=${ago(86_400)}&until=${ago(85_800)}`, 90),
    get('events of a day two years ago', `/v1/events?since=${ago(731 * 86_400)}&until=${ago(730 * 86_400)}`, 90),
    get('events until two years ago, after the last of them', `/v1/events?until=${ago(730 * 86_400)}&after=${Math.ceil(keys * 0.51)}`, 90),
    get('events of a crew', '/v1/events', 90, ofCrew),
    get('events of several crews', '/v1/events', 90, ofCrews),
    get('events of a Mecha', '/v1/events?mecha=filler1%5Ebench', 90),
    get('events of a Mecha that has many and a type of which it has none', '/v1/events?mecha=filler0%5Ebench&type=key.rotated', 90),
    { name: 'issue', blocks: 120, act: (turn) => service.call('POST', '/v1/keys', { mecha: `issued${turn}^bench` }) },
    { name: 'issue with an Idempotency-Key', blocks: 160, act: (turn) => service.call('POST', '/v1/keys', { mecha: `issued${turn}^bench` }, { 'idempotency-key': randomUUID() }) },
    { name: 'issue, revoke', blocks: 300, act: async (turn) => service.call('POST', `/v1/keys/${(await issue(service, `revoked${turn}^bench`)).key.id}/revoke`) },
    { name: 'issue, rotate', blocks: 300, act: async (turn) => service.call('POST', `/v1/keys/${(await issue(service, `rotated${turn}^bench`)).key.id}/rotate`, {}) },
    { name: 'issue, kill switch', blocks: 300, act: async (turn) => (await issue(service, `killed${turn}^bench`)) && service.call('POST', `/v1/mechas/killed${turn}%5Ebench/revoke-keys`) },
  ]
}

async function runtimeLines(database: BenchDatabase, world: World, service: Service, keys: number): Promise<Line[]> {
  const { db } = database
  const known = await seedKeys(database, world, `known${Date.now()}^bench`, 300)
  const { rows } = await sql<{ id: string }>`SELECT id FROM keys WHERE kind = 'mecha' ORDER BY created_at DESC LIMIT 1000`.execute(db)
  const ids = rows.map(({ id }) => id)
  return [
    // Two hundred others are asked about in between, so that none is in memory.
    { name: 'cold verify', blocks: 25, act: (turn) => service.verify(known[turn]!) },
    { name: 'a key that is disabled, and the status list', blocks: 150, act: async (turn) => (await disable(db, ids[turn]!)) && statusList(service) },
    { name: 'issue, first use', blocks: 180, act: async (turn) => service.verify((await issue(service, `used${turn}^bench`)).plaintext_key) },
    { name: 'times of use, of 1,000 keys', blocks: 16_000, act: () => recordUses(db, ids.map((id) => ({ id, usedAt: Date.now(), usedBy: null, org_id: null, isGathered: false }))) },
    { name: 'times of refusal, of 1,000 keys', blocks: 16_000, act: () => recordRefusals(db, ids.map((id) => ({ id, at: Date.now(), code: 'revoked' as const }))) },
    // One entry of an index for each key, and the rows that this run has written: some hundreds, however many keys there are.
    { name: 'root-secrets status', blocks: 300 + Math.ceil(keys / 500), act: () => rootSecretsStatus(db, [world.root]) },
    { name: 'look for a root secret that is missing', blocks: 2500, act: () => missingRootSecret(db, [world.root]) },
  ]
}

async function disable(db: Kysely<Database>, id: string): Promise<unknown> {
  const changed = await sql`UPDATE keys SET enabled = NOT enabled WHERE id = ${id}`.execute(db)
  // Until replicas have heard of it, and may read again what they read last.
  await sleep(400)
  return changed
}

async function statusList({ url }: Service): Promise<string> {
  // All of it is read once, and nobody is kept waiting for long.
  for (let attempt = 0; attempt < 60; attempt++) {
    const answer = await fetch(`${url}/.well-known/token-status`)
    if (answer.ok) return answer.text()
    await sleep(1000)
  }
  throw new Error('there is no status list')
}

/** Time on a core that a GET takes, of the service and of PostgreSQL. */
async function statusListCost({ db, urls }: BenchDatabase, service: Service, keys: number): Promise<string> {
  const client = new Client({ connectionString: urls.owner })
  await client.connect()
  const postmaster = await findPostmaster(client)
  await client.end()
  const { rows } = await sql<{ id: string }>`
    SELECT id FROM keys TABLESAMPLE SYSTEM (${Math.min(100, (100 * 100 * TURNS) / keys)})
    WHERE revoked_at IS NULL AND expires_at IS NULL AND EXISTS (SELECT FROM token_status WHERE key_id = id) LIMIT ${2 * TURNS}`.execute(db)
  const [lists, spent] = [new Set<string>(), { service: 0, postgres: 0 }]
  for (const { id } of rows) {
    await disable(db, id)
    const before = { service: processCpu(service.pid), postgres: familyCpu(postmaster) }
    // Each is another one than all before.
    const known = lists.size
    while (lists.size === known) lists.add(await statusList(service))
    spent.service += processCpu(service.pid) - before.service
    spent.postgres += familyCpu(postmaster) - before.postgres
  }
  const each = (ms: number) => `${(ms / rows.length).toFixed(1)} ms`
  return `${each(spent.service)} of the service and ${each(spent.postgres)} of PostgreSQL on a core, ${Math.round([...lists][0]!.length / 1000)} kB`
}

/** Gives each key an index of the status list, where none has one: a database of an earlier run has none. One in fifty is of a key that is gone. */
async function exchangeAll(db: Kysely<Database>): Promise<void> {
  await sql`
    INSERT INTO token_status (idx, key_id) SELECT row_number() OVER (ORDER BY created_at) - 1, CASE WHEN random() < 0.02 THEN gen_random_uuid() ELSE id END FROM keys
    WHERE kind = 'mecha' AND NOT EXISTS (SELECT FROM token_status) ORDER BY created_at LIMIT 4000000`.execute(db)
  await sql`VACUUM ANALYZE token_status`.execute(db)
}

function issue(service: Service, mecha: string): Promise<{ key: { id: string }; plaintext_key: string }> {
  return service.call('POST', '/v1/keys', { mecha })
}

/**
 * Rows as a deployment has them after years, in which the oldest keys alone are of a rare crew, were disabled or have expired. Many others will
 * expire, and one Mecha has many events. A mark is a file that says that this has been done.
 */
export async function fillOnce(database: BenchDatabase, world: World, mark: string | undefined, keys: number): Promise<void> {
  if (mark && existsSync(mark)) return
  const { db } = database
  await fillTable(database, world, keys)
  await sql`INSERT INTO mechas (handle, org_id) SELECT 'rare' || n || '^rare', ${ORGANIZATION} FROM generate_series(0, ${RARE - 1}::int) n`.execute(db)
  await db.transaction().execute(async (trx) => {
    // No change is told, for nobody holds any of these keys.
    await sql`ALTER TABLE keys DISABLE TRIGGER USER`.execute(trx)
    const oldest = sql`ARRAY(SELECT id FROM keys ORDER BY created_at LIMIT ${RARE})`
    await sql`UPDATE keys SET revoked_at = created_at, revoked_by = 'operator:bench' WHERE id = ANY (ARRAY(SELECT id FROM keys TABLESAMPLE BERNOULLI (5)))`.execute(trx)
    await sql`UPDATE keys SET expires_at = now() + interval '10 years' WHERE id = ANY (ARRAY(SELECT id FROM keys TABLESAMPLE BERNOULLI (5)))`.execute(trx)
    await sql`UPDATE keys SET enabled = false, revoked_at = NULL, revoked_by = NULL, expires_at = NULL WHERE id = ANY (${oldest})`.execute(trx)
    await sql`UPDATE keys SET expires_at = created_at + interval '1 hour' WHERE id = ANY (ARRAY(SELECT id FROM keys WHERE enabled AND revoked_at IS NULL ORDER BY created_at LIMIT ${RARE}))`.execute(trx)
    await sql`
      UPDATE keys SET mecha = 'rare' || n || '^rare'
      FROM (SELECT id, row_number() OVER () - 1 AS n FROM (SELECT id FROM keys WHERE enabled AND revoked_at IS NULL AND expires_at IS NULL ORDER BY created_at LIMIT ${RARE})) AS of
      WHERE keys.id = of.id`.execute(trx)
    await sql`ALTER TABLE keys ENABLE TRIGGER USER`.execute(trx)
    for (const trigger of ['keys_changed', 'keys_truncated', 'keys_keep_revocation']) await sql`ALTER TABLE keys ENABLE ALWAYS TRIGGER ${sql.id(trigger)}`.execute(trx)
  })
  await sql`
    INSERT INTO events (at, type, org_id, key_id, kind, mecha, actor, request_id, address)
    SELECT created_at, CASE WHEN enabled THEN 'key.issued' ELSE 'key.updated' END, org_id, id, kind,
           CASE WHEN random() < 0.1 AND crew = 'bench' THEN 'filler0^bench' ELSE mecha END, CASE WHEN enabled THEN 'operator:bench' ELSE 'operator:rare' END, '', ''
    FROM keys ORDER BY created_at`.execute(db)
  await sql`INSERT INTO key_usage (key_id, first_used_at, last_used_at) SELECT id, created_at, created_at FROM keys ON CONFLICT DO NOTHING`.execute(db)
  await sql`
    INSERT INTO idempotency_keys (digest, request_digest, key_id, expires_at)
    SELECT sha256(id::text::bytea), sha256(id::text::bytea), id, now() + interval '30 days' FROM keys TABLESAMPLE BERNOULLI (10)`.execute(db)
  for (const table of ['keys', 'events', 'key_usage', 'idempotency_keys', 'mechas']) await sql`VACUUM ANALYZE ${sql.id(table)}`.execute(db)
  if (mark) writeFileSync(mark, '')
}
