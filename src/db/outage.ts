/** Telling an outage of the database from a mistake in a statement. */

/** SQLSTATE classes that say "the database is not there", not "the statement is wrong". */
const OUTAGE = /^(08|53|57P0|57014|55P03|25P03)/
const OUTAGE_SYSCALLS = new Set(['connect', 'read', 'write', 'getaddrinfo'])
const OUTAGE_MESSAGE = /^(timeout exceeded when trying to connect|Connection terminated|Query read timeout|connection timeout|Client has encountered a connection error)/i

/** Whether an error means that the database could not be reached or did not answer in time. */
export function isDatabaseOutage(error: unknown): boolean {
  if (!(error instanceof Error)) return false
  const { code, syscall } = error as { code?: unknown; syscall?: unknown }
  if (typeof code === 'string' && OUTAGE.test(code)) return true
  if (typeof syscall === 'string' && OUTAGE_SYSCALLS.has(syscall)) return !isFileError(error)
  if (OUTAGE_MESSAGE.test(error.message)) return true
  return error instanceof AggregateError && error.errors.some(isDatabaseOutage)
}

/** A file that cannot be read has a `path`, as has a Unix socket: that one is connected to. */
function isFileError(error: Error): boolean {
  return 'path' in error && (error as { syscall?: unknown }).syscall !== 'connect'
}
