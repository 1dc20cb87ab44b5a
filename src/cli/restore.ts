/** `restore`: after the database was restored from a back-up. */

import { InvalidArgumentError } from 'commander'
import { replayTrail, restoreAuthor, waiveReplay } from '../control/restore/replay.js'
import { readTrail } from '../control/audit/file.js'
import { asOwner } from './with-database.js'
import { print, userName } from './shared.js'

/** Events that are read from the file at once. */
const PAGE = 1000
/** It reads the whole file. */
const TIMEOUT_MS = 600_000

export async function runRestoreReplay(path: string, { json }: { json?: true }): Promise<void> {
  await asOwner(async (db) => {
    const replayed = await replayTrail(db, readTrail(path, PAGE), restoreAuthor())
    const { events, since, revoked, disabled, shortened, signing_keys, gone, erased } = replayed
    print(json, replayed, () => [
      `read ${events} events, ${since} of them from after the back-up`,
      `ended again: ${revoked} revoked, ${disabled} disabled, ${shortened} with an earlier end, ${signing_keys} signing keys`,
      ...(gone.length > 0 ? [`issued after the back-up and gone with it, ${gone.length}: issue new ones for ${gone.join(' ')}`] : []),
      ...erased.map((org) => `${org} was erased after the back-up, and is there again, with its credentials revoked: run mecha-keys organization erase ${org}`),
      'the database is accepted',
    ])
  }, TIMEOUT_MS)
}

export async function runRestoreWaive({ yesRevocationsMayBeLost }: { yesRevocationsMayBeLost?: true }): Promise<void> {
  if (!yesRevocationsMayBeLost)
    throw new InvalidArgumentError('keys that were revoked since the back-up would be accepted again: if that is meant, say --yes-revocations-may-be-lost')
  await asOwner(async (db) => {
    await waiveReplay(db, { ...restoreAuthor(), actor: `cli:${userName()}` })
    process.stdout.write('the database is accepted as it is\n')
  }, TIMEOUT_MS)
}
