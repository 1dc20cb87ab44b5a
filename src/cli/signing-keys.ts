/** `signing-keys`: lists and rotates the keys that sign exchanged JWTs, straight in the database. */

import { describeSigningKeys, rotateSigningKeys, type Rotation, type SigningKeyView } from '../control/signing-keys/signing-keys.js'
import { print } from './shared.js'
import { commandLine, withControlDeps, withDatabaseSettings } from './with-database.js'

export async function runSigningKeysList({ json }: { json?: true }): Promise<void> {
  await withDatabaseSettings((config) =>
    withControlDeps(config, async ({ db }) => printSigningKeys(json, await describeSigningKeys(db))),
  )
}

export async function runSigningKeysRotate({ json, ...rotation }: Rotation & { json?: true }): Promise<void> {
  await withDatabaseSettings((config) =>
    withControlDeps(config, async (parts) => printSigningKeys(json, await rotateSigningKeys(parts, commandLine(null), rotation))),
  )
}

function printSigningKeys(json: true | undefined, keys: SigningKeyView[]): void {
  const about = { next: 'published, signs from', signing: 'signs since', past: 'verifies only, signed from' }
  print(json, { signing_keys: keys }, () =>
    keys.map(({ kid, alg, role, signs_from }) => `${kid}  ${alg}  ${role.padEnd(7)}  ${about[role]} ${signs_from.toISOString()}`),
  )
}
