/** Keys straight into the table: real ones, whose plaintexts are known, and rows that only make it large. */

import { sql } from 'kysely'
import { hashSecret, nameOfPepper, type Pepper } from '../src/credentials/hash.js'
import { newId } from '../src/credentials/id.js'
import type { Root } from '../src/credentials/roots.js'
import { makeToken } from '../src/credentials/token.js'
import { ORGANIZATION, type BenchDatabase, type World } from './world.js'

const BATCH = 200

/** As the service hashes today: no verify renews it. */
const pepperOf = (root: Root): Pepper => ({ root, version: 2 })

/** Real keys of one Mecha, used before, so that a verify of one has nothing to write. */
export async function seedKeys({ db }: BenchDatabase, { root }: World, mecha: string, count: number): Promise<string[]> {
  await db.insertInto('mechas').values({ handle: mecha, org_id: ORGANIZATION }).execute()
  const plaintexts: string[] = []
  while (plaintexts.length < count) {
    const made = await Promise.all(
      Array.from({ length: Math.min(BATCH, count - plaintexts.length) }, async () => {
        const id = newId()
        const { text, secret } = makeToken('mecha', id, root)
        return { text, id, hash: await hashSecret({ id, subject: mecha, secret }, pepperOf(root), 'high-entropy') }
      }),
    )
    const now = new Date()
    await db.insertInto('keys').values(made.map(({ id, hash }) => ({
      id, hash, kind: 'mecha' as const, org_id: ORGANIZATION, mecha, name: null, scopes: [], metadata: '{}', tag_root: root.id,
      pepper_root: nameOfPepper(pepperOf(root)), created_at: now, created_by: 'operator:bench', expires_at: null, rotated_from: null,
    }))).execute()
    await db.insertInto('key_usage').values(made.map(({ id }) => ({ key_id: id, first_used_at: now, last_used_at: now }))).execute()
    plaintexts.push(...made.map(({ text }) => text))
  }
  return plaintexts
}

/** How far back they go. */
const YEARS = 4

/** Rows that only make the table large: 50 for each of many Mechas, one after another over some years. */
export async function fillTable({ db }: BenchDatabase, { root }: World, count: number): Promise<void> {
  const mechas = Math.ceil(count / 50)
  const hash = await hashSecret({ id: newId(), subject: 'filler', secret: 'filler' }, pepperOf(root), 'high-entropy')
  await sql`INSERT INTO mechas (handle, org_id) SELECT 'filler' || n || '^bench', ${ORGANIZATION} FROM generate_series(0, ${mechas - 1}::int) n`.execute(db)
  const pause = sql`interval '1 second' * ${(YEARS * 365 * 86_400) / count}::float8`
  await db.transaction().execute(async (trx) => {
    // The rows are good: what the foreign keys would look up one by one has just been written.
    await sql`SET LOCAL session_replication_role = replica`.execute(trx)
    await sql`
      INSERT INTO keys (id, kind, org_id, mecha, hash, tag_root, pepper_root, created_at, created_by)
      SELECT uuidv7(-n * ${pause}), 'mecha', ${ORGANIZATION}, 'filler' || n % ${mechas}::int || '^bench', ${hash}, ${root.id}, ${nameOfPepper(pepperOf(root))},
             now() - n * ${pause}, 'operator:bench'
      FROM generate_series(0, ${count - 1}::int) n`.execute(trx)
  })
  await sql`VACUUM ANALYZE keys`.execute(db)
}
