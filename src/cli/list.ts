/** Commands that go through HTTP, for scripts: `issue`, `list`, `revoke`, `verify`. */

import { InvalidArgumentError } from 'commander'
import { call } from './client.js'
import { loadConfig, processEnvironment, type Settings } from '../config.js'
import { ConfigError } from '../errors.js'
import { parseToken } from '../credentials/token.js'
import { EXIT, readKey, print } from './shared.js'

export async function runIssue(mecha: string, options: { name?: string; scope?: string[]; expiresIn?: number; idempotencyKey?: string; json?: true }): Promise<void> {
  const config = loadConfig(processEnvironment())
  const { name, scope: scopes, expiresIn: expires_in, idempotencyKey } = options
  const answer = (await call(config, {
    method: 'POST',
    path: '/v1/keys',
    body: { mecha, name, scopes, expires_in },
    credential: needed(config, 'OPERATOR_TOKEN'),
    ...(idempotencyKey !== undefined && { headers: { 'idempotency-key': idempotencyKey } }),
  })) as { key: { id: string }; plaintext_key: string }
  // The plaintext alone on standard output: export MECHA_KEY=$(mecha-keys issue …)
  if (!options.json) process.stderr.write(`${answer.key.id}\n`)
  print(options.json, answer, () => [answer.plaintext_key])
}

export async function runList(options: { mecha?: string; status?: string; json?: true }): Promise<void> {
  const config = loadConfig(processEnvironment())
  const credential = needed(config, 'OPERATOR_TOKEN')
  const keys: { id: string; mecha: string; status: string; name: string | null }[] = []
  let cursor: string | null = ''
  while (cursor !== null) {
    const query: URLSearchParams = new URLSearchParams({ limit: '100', ...(cursor && { cursor }), ...(options.mecha && { mecha: options.mecha }), ...(options.status && { status: options.status }) })
    const page = (await call(config, { method: 'GET', path: `/v1/keys?${query.toString()}`, credential })) as { keys: typeof keys; next_cursor: string | null }
    keys.push(...page.keys)
    cursor = page.next_cursor
  }
  print(options.json, { keys }, () => keys.map(({ id, status, mecha, name }) => `${id}  ${status.padEnd(8)}  ${mecha}  ${name ?? ''}`))
}

export async function runRevoke(id: string, { reason, json }: { reason?: string; json?: true }): Promise<void> {
  const config = loadConfig(processEnvironment())
  if (parseToken(id)) throw new InvalidArgumentError('<id> is a plaintext key, which is now in this shell\'s history. Revoke it by its id: mecha-keys inspect says which')
  const path = `/v1/keys/${encodeURIComponent(id)}/revoke`
  const key = (await call(config, { method: 'POST', path, body: { reason }, credential: needed(config, 'OPERATOR_TOKEN') })) as { revoked_at: string }
  print(json, key, () => [`revoked ${id} at ${key.revoked_at}`])
}

export async function runVerify(options: { mecha?: string; scope?: string[]; json?: true }): Promise<void> {
  const config = loadConfig(processEnvironment())
  const body = { key: await readKey(config), mecha: options.mecha, scopes: options.scope }
  const credential = needed(config, 'GATEWAY_CREDENTIAL')
  const answer = (await call(config, { method: 'POST', path: '/v1/verify', body, credential })) as
    | { valid: true; key_id: string; mecha: { handle: string } }
    | { valid: false; code: string }
  print(options.json, answer, () => [answer.valid ? `valid: ${answer.key_id} of ${answer.mecha.handle}` : `not valid: ${answer.code}`])
  if (!answer.valid) process.exitCode = EXIT.no
}

function needed(config: Settings, name: 'OPERATOR_TOKEN' | 'GATEWAY_CREDENTIAL'): string {
  const value = config[name]
  if (!value) throw new ConfigError(`${name} or ${name}_FILE must be set`)
  return value
}
