/** `events`: the audit trail, written out for whoever keeps it elsewhere, and its end. */

import { once } from 'node:events'
import { setTimeout as sleep } from 'node:timers/promises'
import { InvalidArgumentError } from 'commander'
import { requireDatabase } from '../config.js'
import { openTrailFile, toLines } from '../control/audit/file.js'
import { followTrail, type TrailEvent } from '../control/audit/follow.js'
import { expireEvents } from '../control/audit/partitions.js'
import { openDatabase } from '../db/pool.js'
import { asOwner, withDatabaseSettings } from './with-database.js'
import { print } from './shared.js'

/** Longest wait for a database that does not answer, when all that is left to do is to hang up. */
const HANG_UP_MS = 1000
/** Partitions are read once before they get bounds. */
const EXPIRE_TIMEOUT_MS = 600_000

export async function runEvents(options: { follow?: true; after?: string; output?: string }): Promise<void> {
  await withDatabaseSettings(async (config) => {
    const file = options.output === undefined ? undefined : await openTrailFile(options.output)
    if (file?.last && options.after !== undefined) throw new InvalidArgumentError('--after is for a new file: this one is gone on with after its last line')
    const db = openDatabase({ url: requireDatabase(config, 'DATABASE_URL'), size: 1, timeoutMs: config.DATABASE_TIMEOUT * 1000, name: 'mecha-keys events' })
    const end = new AbortController()
    for (const signal of ['SIGTERM', 'SIGINT'] as const) process.once(signal, () => end.abort())
    const following = followTrail({
      db,
      write: file ? (events) => file.append(events) : (events) => writeOut(events, end),
      last: file?.last,
      after: options.after ?? '0',
      isEndless: options.follow ?? false,
      signal: end.signal,
      warn: (message) => void process.stderr.write(`mecha-keys: ${message}\n`),
    })
    // A statement that the database does not answer is not waited for.
    const told = end.signal.aborted ? Promise.resolve() : once(end.signal, 'abort').then(() => sleep(HANG_UP_MS, undefined, { ref: false }))
    await Promise.race([following, told])
    await file?.close()
    if (end.signal.aborted) process.exitCode = 0
    const hungUp = db.destroy().catch(() => {})
    if ((await Promise.race([hungUp.then(() => true), sleep(HANG_UP_MS, false, { ref: false })])) === false) process.exit()
  })
}

export async function runEventsExpire({ json }: { json?: true }): Promise<void> {
  await asOwner(async (db, { EVENTS_RETENTION }) => {
    const expiry = await expireEvents(db, EVENTS_RETENTION)
    print(json, expiry, () => [
      ...expiry.made.map((name) => `made ${name}`),
      ...expiry.dropped.map((name) => `dropped ${name}`),
      expiry.before ? `no event from before ${expiry.before.toISOString()} is kept` : EVENTS_RETENTION === undefined ? 'EVENTS_RETENTION is not set: every event is kept' : 'nothing to drop',
    ])
  }, EXPIRE_TIMEOUT_MS)
}

/** Whoever reads may have had enough: that ends it as a signal does. */
async function writeOut(events: readonly TrailEvent[], end: AbortController): Promise<void> {
  await new Promise<void>((resolve, reject) => {
    process.stdout.write(toLines(events), (error) => {
      if (!error) return resolve()
      if ((error as NodeJS.ErrnoException).code !== 'EPIPE') return reject(error)
      end.abort()
      resolve()
    })
  })
}
