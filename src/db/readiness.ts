/** Whether a plane can work with its database, and if not, what would have to change. */

import { sql, type Kysely } from 'kysely'
import { restoreHold } from './identity.js'
import { ROLE, type Plane } from './logins.js'
import { pendingMigrations } from './migrate.js'
import { databaseFailure } from './outage.js'
import type { Database } from './tables.js'
import { unsupportedVersion } from './version.js'

/** SQLSTATEs of a login that is refused, or a database that does not exist: nothing that waiting mends. */
const NOT_SET_UP = /^(28|3D)/

/** A plane's login. */
export interface PlaneLogin {
  readonly db: Kysely<Database>
  readonly plane: Plane
  /** The setting that names the login. */
  readonly setting: string
  /** Whether the process serves nothing but this plane, so that nothing in it needs the other's rights. */
  readonly isAlone: boolean
}

/** What is wrong with a plane's database, in a sentence for people; `undefined` when nothing is. */
export async function databaseTrouble(login: PlaneLogin): Promise<string | undefined> {
  const { db, setting } = login
  try {
    const unsupported = await unsupportedVersion(db, setting)
    if (unsupported) return unsupported
    const pending = await pendingMigrations(db)
    if (pending.length > 0) return `run mecha-keys migrate: ${pending.join(', ')} missing`
    return (await wrongRights(login)) ?? (await whyReadOnly(login)) ?? (await restoreHold(db))
  } catch (error) {
    const failure = NOT_SET_UP.test(String((error as { code?: unknown }).code)) ? undefined : databaseFailure(error)
    if (failure === 'unavailable') return 'the database does not answer'
    if (failure === 'cancelled') return 'the database does not answer within DATABASE_TIMEOUT'
    return `the database is not set up for the login of ${setting}: run mecha-keys migrate`
  }
}

/**
 * What a setting has led to that no waiting mends: a server that is not supported, or a login with the rights of another.
 * Throws where the database cannot say so now.
 */
export async function databaseMistake(login: PlaneLogin): Promise<string | undefined> {
  const unsupported = await unsupportedVersion(login.db, login.setting)
  if (unsupported || (await pendingMigrations(login.db)).length > 0) return unsupported
  return wrongRights(login)
}

/**
 * Whether the login lacks something that migrations have granted to the plane's role, or has what would let whoever breaks
 * into the process do what the plane must not be able to. Asked of the catalog and not tried: nothing is written for it.
 */
async function wrongRights({ db, plane, setting, isAlone }: PlaneLogin): Promise<string | undefined> {
  const role = ROLE[plane]
  const { rows } = await sql<{ lacks: boolean; owns: boolean; issues: boolean }>`
    SELECT EXISTS (
             SELECT FROM pg_class, aclexplode(relacl) WHERE relkind IN ('r', 'p') AND grantee = to_regrole(${role}) AND NOT has_table_privilege(pg_class.oid, privilege_type)
             UNION ALL
             SELECT FROM pg_attribute, aclexplode(attacl) WHERE grantee = to_regrole(${role}) AND NOT has_column_privilege(attrelid, attnum, privilege_type)
             UNION ALL
             SELECT FROM pg_proc, aclexplode(proacl) WHERE grantee = to_regrole(${role}) AND NOT has_function_privilege(pg_proc.oid, privilege_type)
           ) AS lacks,
           has_table_privilege('events', 'DELETE') AS owns,
           has_any_column_privilege('keys', 'INSERT') OR has_any_column_privilege('events', 'SELECT') AS issues`.execute(db)
  const { lacks, owns, issues } = rows[0]!
  if (owns) return `${setting} is the login of the database's owner or of a superuser, which could change the audit trail: give the ${plane} plane one that is granted ${role} and nothing else`
  if (lacks) return `${setting} is a login without the rights of ${role}: give the ${plane} plane one that is granted them, or run mecha-keys migrate --with-logins`
  if (plane === 'runtime' && isAlone && issues) return `${setting} is a login that can issue keys or read the audit trail: give the runtime plane one that is granted ${role} and nothing else`
  return undefined
}

/** Both planes write: revocations, first uses, how far a replica has come. */
async function whyReadOnly({ db, setting }: PlaneLogin): Promise<string | undefined> {
  const { rows } = await sql<{ is_standby: boolean; is_read_only: boolean }>`
    SELECT pg_is_in_recovery() AS is_standby, current_setting('transaction_read_only')::boolean AS is_read_only`.execute(db)
  const { is_standby, is_read_only } = rows[0]!
  if (is_standby) return `the database is a standby, which cannot be written to: lead ${setting} to the primary`
  return is_read_only ? 'the database is read-only: default_transaction_read_only is on' : undefined
}
