/** `verify`: verifies a key through the service; the exit code says whether it is valid. */

import { loadConfig, processEnvironment } from '../config.js'
import { call, requireCredential } from './client.js'
import { EXIT, print, readKey } from './shared.js'

export async function runVerify(options: { mecha?: string; scope?: string[]; json?: true }): Promise<void> {
  const config = loadConfig(processEnvironment())
  const body = { key: await readKey(config), mecha: options.mecha, scopes: options.scope }
  const credential = requireCredential(config, 'GATEWAY_CREDENTIAL')
  const answer = (await call(config, { method: 'POST', path: '/v1/verify', body, credential })) as
    | { valid: true; key_id: string; mecha: { handle: string } }
    | { valid: false; code: string }
  print(options.json, answer, () => [answer.valid ? `valid: ${answer.key_id} of ${answer.mecha.handle}` : `not valid: ${answer.code}`])
  if (!answer.valid) process.exitCode = EXIT.no
}
