/** The PostgreSQL that the tests run on. Known to the runner too, so nothing here knows tap. */

import { accessSync, constants, mkdtempSync, statfsSync } from 'node:fs'
import { freemem, tmpdir } from 'node:os'
import { join } from 'node:path'
import { Pool } from 'pg'

/** The planes' logins on the test server. Made up, as the server is. */
export const LOGINS = {
  control: 'mecha_keys_test_control:control-of-a-throw-away-database',
  runtime: 'mecha_keys_test_runtime:runtime-of-a-throw-away-database',
} as const

/** The URL of a database on the test server, as its superuser or as a `user:password`. */
export function urlFor(serverUrl: string, database: string, credentials?: string): string {
  const url = new URL(serverUrl)
  url.pathname = `/${database}`
  if (credentials) [url.username, url.password] = credentials.split(':') as [string, string]
  return url.href
}

/** One connection as the server's superuser. It may still be closing when the server ends, which is no error here. */
export function openAdmin(url: string): Pool {
  return new Pool({ connectionString: url, max: 1 }).on('error', () => {})
}

/** Where Linux keeps files in memory. */
const MEMORY = '/dev/shm'
/** Least room there, in bytes. A run on two cores takes up to 0.5 GiB; one on more cores has more servers at a time. */
const ROOM = 4 * 2 ** 30

/**
 * A new folder for the data of servers that nothing has to outlive, in memory where there is room: a database is made of hundreds of
 * files, and to make them on a disk is most of what it takes.
 */
export function dataFolder(): string {
  return mkdtempSync(join(isRoomy(MEMORY) ? MEMORY : tmpdir(), 'mecha-keys-tests-'))
}

function isRoomy(folder: string): boolean {
  try {
    accessSync(folder, constants.W_OK)
    const { bavail, bsize } = statfsSync(folder)
    return Math.min(bavail * bsize, freemem()) >= ROOM
  } catch {
    return false
  }
}
