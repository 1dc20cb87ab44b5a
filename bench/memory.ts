/**
 * What a cached key weighs: rows read from a table as the service reads them, kept in the service's own cache, and the
 * heap and what hangs on it before and after. Reads an order on standard input and writes bytes per key.
 */

import { text } from 'node:stream/consumers'
import { sql } from 'kysely'
import { openDatabase } from '../src/db/pool.js'
import { deriveRoot } from '../src/credentials/roots.js'
import { makeToken } from '../src/credentials/token.js'
import { CredentialCache } from '../src/runtime/verify/credential-cache.js'
import { findCredentials } from '../src/runtime/verify/store.js'

const { url, count } = JSON.parse(await text(process.stdin)) as { url: string; count: number }
const BATCH = 500
const db = openDatabase({ url, size: 1, timeoutMs: 60_000, name: 'bench' })
const root = deriveRoot('the root of nothing but this measurement')
let last = '00000000-0000-0000-0000-000000000000'
const before = weigh()
const cache = new CredentialCache(count)
while (cache.size < count) {
  const { rows } = await sql<{ id: string }>`SELECT id FROM keys WHERE id > ${last} ORDER BY id LIMIT ${Math.min(BATCH, count - cache.size)}`.execute(db)
  if (rows.length === 0) throw new Error('the table has too few rows')
  last = rows.at(-1)!.id
  const { found: read } = await findCredentials(db, rows.map(({ id }) => id))
  for (const found of read)
    cache.keep(found, cache.digest(makeToken('mecha', found.row.id, root)))
}
const bytes = (weigh() - before) / cache.size
process.stdout.write(`${JSON.stringify({ bytes })}\n`)
await db.destroy()

function weigh(): number {
  for (let i = 0; i < 3; i++) gc!()
  const { heapUsed, external, arrayBuffers } = process.memoryUsage()
  return heapUsed + external + arrayBuffers
}
