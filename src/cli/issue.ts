/** `issue`: issues a key through the service, for scripts. */

import { loadConfig, processEnvironment } from '../config.js'
import { call, requireCredential } from './client.js'
import { print } from './shared.js'

export async function runIssue(mecha: string, options: { name?: string; scope?: string[]; expiresIn?: number; idempotencyKey?: string; json?: true }): Promise<void> {
  const config = loadConfig(processEnvironment())
  const { name, scope: scopes, expiresIn: expires_in, idempotencyKey } = options
  const answer = (await call(config, {
    method: 'POST',
    path: '/v1/keys',
    body: { mecha, name, scopes, expires_in },
    credential: requireCredential(config, 'OPERATOR_TOKEN'),
    ...(idempotencyKey !== undefined && { headers: { 'idempotency-key': idempotencyKey } }),
  })) as { key: { id: string }; plaintext_key: string }
  // The plaintext alone on standard output: export MECHA_KEY=$(mecha-keys issue …)
  if (!options.json) process.stderr.write(`${answer.key.id}\n`)
  print(options.json, answer, () => [answer.plaintext_key])
}
