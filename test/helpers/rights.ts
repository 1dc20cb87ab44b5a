/** What PostgreSQL lets a role do in a database, as its catalogue says. */

import { sql, type Kysely } from 'kysely'

/** The rights of a role in the service's schema, and what everybody may do there: `UPDATE keys.hash`, `EXECUTE take_nonce`. In order. */
export async function rightsOf(role: string, db: Kysely<any>): Promise<string[]> {
  const { rows } = await sql<{ right: string }>`
    WITH granted AS (
      SELECT relname AS what, (aclexplode(relacl)).* FROM pg_class WHERE relnamespace = 'public'::regnamespace
      UNION ALL SELECT relname || '.' || attname, (aclexplode(attacl)).* FROM pg_attribute JOIN pg_class c ON c.oid = attrelid WHERE relnamespace = 'public'::regnamespace
      UNION ALL SELECT proname, (aclexplode(coalesce(proacl, acldefault('f', proowner)))).* FROM pg_proc WHERE pronamespace = 'public'::regnamespace
      UNION ALL SELECT nspname, (aclexplode(nspacl)).* FROM pg_namespace WHERE nspname = 'public'
    )
    SELECT DISTINCT privilege_type || ' ' || what AS "right" FROM granted WHERE grantee = 0 OR grantee = ${role}::regrole`.execute(db)
  return rows.map(({ right }) => right).sort()
}
