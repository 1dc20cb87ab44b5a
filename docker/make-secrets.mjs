/**
 * Generates what docker-compose.yml needs: `node make-secrets.mjs <folder>`.
 *
 * Each secret is a file that its owner alone can read. A file that is there is left as it is, and nothing is printed but names.
 */

import { generateKeyPairSync, randomBytes } from 'node:crypto'
import { existsSync, renameSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'

const [folder] = process.argv.slice(2)
if (!folder) {
  process.stderr.write('usage: node make-secrets.mjs <folder>\n')
  process.exit(2)
}

const random = () => randomBytes(32).toString('base64url')
const databaseUrl = (login) => `postgres://${login}:${random()}@postgres:5432/mecha_keys`

keep('database-url', () => databaseUrl('mecha_keys_control_login'))
keep('runtime-database-url', () => databaseUrl('mecha_keys_runtime_login'))
keep('root-secrets', random)
keep('builtin-issuer.pem', () => generateKeyPairSync('ed25519').privateKey.export({ type: 'pkcs8', format: 'pem' }))

/** Makes a secret if it is not there. */
function keep(name, make) {
  const file = join(folder, name)
  if (existsSync(file)) return
  // Under another name first: whoever is interrupted leaves no half of a secret to be taken for a whole one.
  const unfinished = `${file}.new`
  rmSync(unfinished, { force: true })
  writeFileSync(unfinished, make(), { mode: 0o400, flush: true })
  renameSync(unfinished, file)
  process.stdout.write(`made ${name}\n`)
}
