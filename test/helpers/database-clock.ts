/** A database whose clock can be set: `now()` and `clock_timestamp()` of every session that begins after this. */

import { sql } from 'kysely'
import type { TestDatabase } from './database.js'

export interface DatabaseClock {
  /** Sets the clock this many seconds ahead of the server's, or back. */
  readonly step: (seconds: number) => Promise<void>
}

/** Functions of the same names, found before PostgreSQL's own. Functions that set their own `search_path` keep the server's time. */
export async function steppable({ db }: TestDatabase): Promise<DatabaseClock> {
  const step = async (seconds: number) => {
    for (const [name, volatility] of [['now', 'STABLE'], ['clock_timestamp', 'VOLATILE']] as const)
      await sql.raw(`CREATE OR REPLACE FUNCTION stepped.${name}() RETURNS timestamptz LANGUAGE sql ${volatility} AS $$ SELECT pg_catalog.${name}() + interval '${seconds} seconds' $$`).execute(db)
  }
  await sql`CREATE SCHEMA stepped`.execute(db)
  await sql`GRANT USAGE ON SCHEMA stepped TO PUBLIC`.execute(db)
  await sql`ALTER DEFAULT PRIVILEGES IN SCHEMA stepped GRANT EXECUTE ON FUNCTIONS TO PUBLIC`.execute(db)
  await step(0)
  const { rows } = await sql<{ name: string }>`SELECT current_database() AS name`.execute(db)
  await sql`ALTER DATABASE ${sql.id(rows[0]!.name)} SET search_path = stepped, pg_catalog, public`.execute(db)
  return { step }
}
