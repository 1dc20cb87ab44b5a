/**
 * What a failure of the database means to whoever asked: the one place that tells a database that cannot serve from a
 * statement that it gave up, and both from a mistake of ours.
 */

/**
 * `unavailable`: the database cannot be reached, cannot be written to, or undid the transaction for another's sake.
 * `cancelled`: the database is there, and this statement took longer than it may; what it had begun is undone.
 */
export type DatabaseFailure = 'unavailable' | 'cancelled'

/**
 * SQLSTATEs, or their beginnings, that say "not here, not now": lost connections (08), refused logins (28, a password that is
 * being changed), a database that is not there (3D000, a restore), resources (53: connections, memory, disk), a server that starts
 * or stops (57P), storage (58030), a session that was ended (25P03), a standby or another read-only database (25006), and a
 * transaction that lost against another one (40001, 40P01).
 */
const UNAVAILABLE = /^(08|28|3D000|53|57P|58030|25P03|25006|40001|40P01)/
/** A restore in place drops what a statement under way is about to use: XX000 says so in words only. */
const DROPPED = /^(cache lookup failed for|could not open relation with OID) /
/** A statement, a lock or a transaction took longer than its time-out, or somebody cancelled it. */
const CANCELLED = /^(57014|55P03|25P04)/
/** PostgreSQL undid the transaction because of another one. Nothing of it happened, and the next attempt may succeed. */
const CONFLICT = /^(40001|40P01)/
/** A standby, or `default_transaction_read_only`. */
const READ_ONLY = '25006'

const OUTAGE_SYSCALLS = new Set(['connect', 'read', 'write', 'getaddrinfo'])
/** Errors of the client that have no code. */
const OUTAGE_MESSAGE =
  /^(timeout exceeded when trying to connect|Connection terminated|Query read timeout|connection timeout|Client has encountered a connection error|Client was closed)/i

/** What kind of failure of the database an error is; `undefined` when it is something else. */
export function databaseFailure(error: unknown): DatabaseFailure | undefined {
  if (!(error instanceof Error)) return undefined
  const { code, syscall } = error as { code?: unknown; syscall?: unknown }
  if (typeof code === 'string' && CANCELLED.test(code)) return 'cancelled'
  if (typeof code === 'string' && isSqlState(error) && UNAVAILABLE.test(code)) return 'unavailable'
  if (code === 'XX000' && DROPPED.test(error.message)) return 'unavailable'
  if (typeof syscall === 'string' && OUTAGE_SYSCALLS.has(syscall)) return isFileError(error) ? undefined : 'unavailable'
  if (OUTAGE_MESSAGE.test(error.message)) return 'unavailable'
  return error instanceof AggregateError && error.errors.some(isDatabaseOutage) ? 'unavailable' : undefined
}

/** Whether an error means that the database could not be reached, could not be written to or did not answer in time. */
export function isDatabaseOutage(error: unknown): boolean {
  return databaseFailure(error) === 'unavailable'
}

/** Whether PostgreSQL undid a transaction because of another one, so that it can be run again as it was. */
export function isConflict(error: unknown): boolean {
  return CONFLICT.test(codeOf(error))
}

/** Whether a statement waited for a lock for longer than it may. Nothing of its transaction has happened. */
export function lockTimedOut(error: unknown): boolean {
  return codeOf(error) === '55P03'
}

/** Whether the database takes no writes. */
export function isReadOnly(error: unknown): boolean {
  return codeOf(error) === READ_ONLY
}

/** What names the cause in a log line: an SQLSTATE, a code of the operating system, or the client's own words. No stack. */
export function causeOf(error: unknown): string {
  return codeOf(error) || (error instanceof Error ? error.message : String(error))
}

function codeOf(error: unknown): string {
  const code = error instanceof Error ? (error as { code?: unknown }).code : undefined
  return typeof code === 'string' ? code : ''
}

/** An SQLSTATE comes with a severity; other codes may begin with the same characters. */
function isSqlState(error: Error): boolean {
  return 'severity' in error
}

/** A file that cannot be read has a `path`, as has a Unix socket: that one is connected to. */
function isFileError(error: Error): boolean {
  return 'path' in error && (error as { syscall?: unknown }).syscall !== 'connect'
}
