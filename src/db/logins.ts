/** Login roles for the planes: made from the URLs that the planes will connect with. */

import { createHash, createHmac, pbkdf2Sync, randomBytes } from 'node:crypto'
import { sql, type Kysely } from 'kysely'
import { DURABLE_COMMIT, SERVER_TIMEOUTS } from './pool.js'

/** Which plane's rights a login gets. */
export const ROLE = { control: 'mecha_keys_control', runtime: 'mecha_keys_runtime' } as const
export type Plane = keyof typeof ROLE

/**
 * Creates the login that `url` names, or sets its password, and grants it the plane's role and nothing else.
 * The server is sent a SCRAM verifier (RFC 5802), so that no password can end up in its log.
 *
 * What the service asks for with each connection is kept with the login too, because a pooler does not pass it on.
 *
 * @param timeoutMs length of {@link SERVER_TIMEOUTS}
 */
export async function ensureLogin(db: Kysely<any>, plane: Plane, url: string, timeoutMs: number): Promise<void> {
  const { username, password } = new URL(url)
  const login = sql.id(decodeURIComponent(username))
  const verifier = sql.lit(scramVerifier(decodeURIComponent(password)))
  const { rows } = await sql`SELECT FROM pg_roles WHERE rolname = ${decodeURIComponent(username)}`.execute(db)
  if (rows.length === 0) await sql`CREATE ROLE ${login} LOGIN`.execute(db)
  await sql`ALTER ROLE ${login} PASSWORD ${verifier}`.execute(db)
  await sql`GRANT ${sql.id(ROLE[plane])} TO ${login}`.execute(db)
  const { rows: here } = await sql<{ name: string }>`SELECT current_database() AS name`.execute(db)
  const settings = [DURABLE_COMMIT, ...SERVER_TIMEOUTS.map((name) => ({ name, value: timeoutMs }))]
  for (const { name, value } of settings)
    await sql`ALTER ROLE ${login} IN DATABASE ${sql.id(here[0]!.name)} SET ${sql.raw(name)} = ${sql.lit(value)}`.execute(db)
}

function scramVerifier(password: string): string {
  const iterations = 4096
  const salt = randomBytes(16)
  const salted = pbkdf2Sync(password.normalize('NFKC'), salt, iterations, 32, 'sha256')
  const hmac = (text: string) => createHmac('sha256', salted).update(text).digest()
  const stored = createHash('sha256').update(hmac('Client Key')).digest('base64')
  return `SCRAM-SHA-256$${iterations}:${salt.toString('base64')}$${stored}:${hmac('Server Key').toString('base64')}`
}
