/** Commands that need neither the service nor a database: `config`, `operator-token`, `inspect`. */

import { InvalidArgumentError } from 'commander'
import { signOperatorToken } from '../control/operators/builtin-issuer.js'
import { SCOPES, type Scope } from '../control/operators/scopes.js'
import { describeConfig, loadConfig, processEnvironment, suspectNames } from '../config.js'
import { publicId } from '../credentials/id.js'
import { parseToken } from '../credentials/token.js'
import { isLocal, withLocalFiles } from './local.js'
import { EXIT, readKey, print } from './shared.js'

export async function runConfig({ json }: { json?: true }): Promise<void> {
  const environment = processEnvironment()
  const effective = isLocal(environment) ? withLocalFiles(environment) : environment
  loadConfig(effective)
  const settings = describeConfig(effective)
  const width = Math.max(...Object.keys(settings).map((name) => name.length))
  print(json, settings, () =>
    Object.entries(settings).map(([name, { value, from }]) => `${name.padEnd(width)}  ${value ?? '-'}  (${from})`),
  )
  for (const { name, meant } of suspectNames(environment))
    process.stderr.write(`${name} is no setting of mecha-keys${meant ? `: did you mean ${meant}?` : ''}\n`)
}

interface TokenOptions {
  org: string
  scope: string[]
  crew?: string[]
  subject: string
  ttl: number
}

export async function runOperatorToken({ org, scope, crew, subject, ttl }: TokenOptions): Promise<void> {
  const scopes = scope.flatMap((one) => one.split(/[ ,]+/))
  const unknown = scopes.find((one) => !(SCOPES as readonly string[]).includes(one))
  if (unknown !== undefined) throw new InvalidArgumentError(`--scope ${unknown} is none of ${SCOPES.join(', ')}`)
  const environment = processEnvironment()
  const config = loadConfig(isLocal(environment) ? withLocalFiles(environment) : environment)
  const claims = { org, scopes: scopes as Scope[], subject, ttlSeconds: ttl, ...(crew && { crews: crew }) }
  process.stdout.write(`${await signOperatorToken(config, claims)}\n`)
}

export async function runInspect({ json }: { json?: true }): Promise<void> {
  const token = parseToken(await readKey(loadConfig(processEnvironment())))
  const answer = token
    ? { well_formed: true, prefix: token.prefix, key_id: publicId('mecha', token.id), gateway_id: publicId('gateway', token.id) }
    : { well_formed: false }
  print(json, answer, () => [token ? `a well-formed key with the prefix ${token.prefix}: ${publicId('mecha', token.id)}` : 'not a well-formed key'])
  if (!token) process.exitCode = EXIT.no
}
