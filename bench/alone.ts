/**
 * Parts of the service's work by themselves, with nothing around them: what no service that does this work exceeds.
 * Reads an order on standard input and writes how often per second the part was done, and for how long on a core this process did it each time.
 */

import { text } from 'node:stream/consumers'
import { Pool } from 'pg'
import { hashSecret, nameOfPepper, verifySecret, type Pepper } from '../src/credentials/hash.js'
import { newId } from '../src/credentials/id.js'
import { deriveRoot } from '../src/credentials/roots.js'

export interface AloneOrder {
  readonly part: 'argon2' | 'lookups' | 'inserts'
  readonly seconds: number
  /** How many are under way at once. */
  readonly callers: number
  /** For what asks a database. */
  readonly url?: string
  readonly mecha?: string
}

const { part, seconds, callers, url, mecha } = JSON.parse(await text(process.stdin)) as AloneOrder
const root = deriveRoot('the root of nothing but this measurement')
const pepper: Pepper = { root, version: 2 }
const pool = new Pool({ ...(url && { connectionString: url }), max: 10 })

const { work } = await { argon2, lookups, inserts }[part]()
let done = 0
const before = process.cpuUsage()
const start = performance.now()
const end = start + seconds * 1000
await Promise.all(
  Array.from({ length: callers }, async () => {
    for (; performance.now() < end; done++) await work()
  }),
)
const { user, system } = process.cpuUsage(before)
process.stdout.write(`${JSON.stringify({ rate: done / ((performance.now() - start) / 1000), cpu_us: (user + system) / done })}\n`)
await pool.end()

async function argon2() {
  const input = { id: newId(), subject: 'sales^acmecorp', secret: 'x'.repeat(43) }
  const hash = await hashSecret(input, pepper, 'high-entropy')
  return { work: () => verifySecret(hash, input, pepper) }
}

async function lookups() {
  const { rows } = await pool.query<{ id: string }>('SELECT id FROM keys WHERE mecha = $1', [mecha])
  let next = 0
  return { work: () => pool.query('SELECT * FROM keys WHERE id = $1', [rows[next++ % rows.length]!.id]) }
}

/** An issue without anything that makes it safe: the hash, and the three rows that it leaves. */
async function inserts() {
  const run = Date.now().toString(36)
  let next = 0
  const work = async () => {
    const id = newId()
    const handle = `alone${run}${next++}^bench`
    const hash = await hashSecret({ id, subject: handle, secret: 'x'.repeat(43) }, pepper, 'high-entropy')
    const client = await pool.connect()
    await client.query('BEGIN')
    await client.query('INSERT INTO mechas (handle, org_id) VALUES ($1, $2)', [handle, 'bench'])
    await client.query(
      `INSERT INTO keys (id, kind, org_id, mecha, hash, tag_root, pepper_root, created_at, created_by) VALUES ($1, 'mecha', 'bench', $2, $3, $4, $5, now(), 'operator:bench')`,
      [id, handle, hash, root.id, nameOfPepper(pepper)],
    )
    await client.query(
      `INSERT INTO events (at, type, org_id, key_id, kind, mecha, actor, request_id, address) VALUES (now(), 'key.issued', 'bench', $1, 'mecha', $2, 'operator:bench', 'none', 'local')`,
      [id, handle],
    )
    await client.query('COMMIT')
    client.release()
  }
  return { work }
}
