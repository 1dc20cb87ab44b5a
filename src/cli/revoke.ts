/** `revoke`: revokes a key through the service. */

import { InvalidArgumentError } from 'commander'
import { loadConfig, processEnvironment } from '../config.js'
import { parseToken } from '../credentials/token.js'
import { call, requireCredential } from './client.js'
import { print } from './shared.js'

export async function runRevoke(id: string, { reason, json }: { reason?: string; json?: true }): Promise<void> {
  const config = loadConfig(processEnvironment())
  if (parseToken(id)) throw new InvalidArgumentError('<id> is a plaintext key, which is now in this shell\'s history. Revoke it by its id: mecha-keys inspect says which')
  const path = `/v1/keys/${encodeURIComponent(id)}/revoke`
  const key = (await call(config, { method: 'POST', path, body: { reason }, credential: requireCredential(config, 'OPERATOR_TOKEN') })) as { revoked_at: string }
  print(json, key, () => [`revoked ${id} at ${key.revoked_at}`])
}
