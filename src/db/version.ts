/** Which servers the service runs on. */

import { sql, type Kysely } from 'kysely'

/** The oldest major version of PostgreSQL that is supported. */
export const OLDEST_POSTGRES = 14

/** Says which server a setting leads to, where it is none that is supported; `undefined` where it is. */
export async function unsupportedVersion(db: Kysely<any>, setting: string): Promise<string | undefined> {
  const { rows } = await sql<{ number: string; name: string }>`SELECT current_setting('server_version_num') AS number, version() AS name`.execute(db)
  const { number, name } = rows[0]!
  // Others speak PostgreSQL's protocol and give a version of it, as in `PostgreSQL 15.2-YB-2.23`; their locks, snapshots and notifications are their own.
  const [postgres] = /^PostgreSQL [\w.]+(?=[ ,]|$)/.exec(name) ?? []
  if (postgres && Number(number) >= OLDEST_POSTGRES * 10_000) return undefined
  return `${setting} leads to ${postgres ?? name.slice(0, 60)}: PostgreSQL ${OLDEST_POSTGRES} or later is needed`
}
