/**
 * Generates what docker-compose.yml needs: `node make-secrets.mjs <folder>`.
 *
 * Each secret is a file that its owner alone can read. What the service needs is in `<folder>/service`, what only the
 * database and `mecha-keys migrate` need in `<folder>/owner`. A file that is there is left as it is, and nothing is printed
 * but names.
 */

import { generateKeyPairSync, randomBytes } from 'node:crypto'
import { existsSync, mkdirSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'

const [folder] = process.argv.slice(2)
if (!folder) {
  process.stderr.write('usage: node make-secrets.mjs <folder>\n')
  process.exit(2)
}

const random = () => randomBytes(32).toString('base64url')
const databaseUrl = (login, password) => `postgres://${login}:${password}@postgres:5432/mecha_keys`

const ownerPassword = secret('owner/postgres-password', random)
secret('owner/migrate-database-url', () => databaseUrl('mecha_keys_owner', ownerPassword))
secret('service/database-url', () => databaseUrl('mecha_keys_control_login', random()))
secret('service/runtime-database-url', () => databaseUrl('mecha_keys_runtime_login', random()))
secret('service/root-secrets', random)
secret('service/builtin-issuer.pem', () =>
  generateKeyPairSync('ed25519').privateKey.export({ type: 'pkcs8', format: 'pem' }),
)

/** The secret that the file holds, which is made if it is not there. */
function secret(name, make) {
  const file = join(folder, name)
  if (!existsSync(file)) {
    mkdirSync(join(file, '..'), { recursive: true, mode: 0o700 })
    // Under another name first: whoever is interrupted leaves no half of a secret to be taken for a whole one.
    const unfinished = `${file}.new`
    rmSync(unfinished, { force: true })
    writeFileSync(unfinished, make(), { mode: 0o400, flush: true })
    renameSync(unfinished, file)
    process.stdout.write(`made ${name}\n`)
  }
  return readFileSync(file, 'utf8')
}
