/** `operator-token`: signs one with the built-in issuer. It needs neither the service nor a database. */

import { InvalidArgumentError } from 'commander'
import { loadConfig, processEnvironment } from '../config.js'
import { signOperatorToken } from '../control/operators/builtin-issuer.js'
import { SCOPES, type Scope } from '../control/operators/scopes.js'
import { isLocal, withLocalFiles } from './local.js'

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
