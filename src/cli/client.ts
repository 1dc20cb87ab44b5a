/** The service over HTTP, for scripts: what the commands `issue`, `list`, `revoke` and `verify` are made of. */

import type { Settings } from '../config.js'
import { ConfigError } from '../errors.js'

const TIMEOUT_MS = 10_000

/** A refusal by the service: the answer is no, and the problem says why. */
export class Refused extends Error {}
/** No answer that could be trusted: the service is not there, or not well. */
export class Unreachable extends Error {}

export interface Call {
  readonly method: 'GET' | 'POST'
  readonly path: string
  readonly body?: unknown
  readonly headers?: Readonly<Record<string, string>>
  readonly credential: string
}

/** Sends one request and resolves to the body of its answer. */
export async function call({ MECHA_KEYS_URL }: Pick<Settings, 'MECHA_KEYS_URL'>, { method, path, body, headers, credential }: Call): Promise<unknown> {
  const response = await fetch(MECHA_KEYS_URL + path, {
    method,
    headers: { authorization: `Bearer ${credential}`, ...(body !== undefined && { 'content-type': 'application/json' }), ...headers },
    ...(body !== undefined && { body: JSON.stringify(body) }),
    redirect: 'error',
    signal: AbortSignal.timeout(TIMEOUT_MS),
  }).catch((error: Error) => {
    throw new Unreachable(`${MECHA_KEYS_URL} does not answer (${(error.cause as NodeJS.ErrnoException | undefined)?.code ?? error.name})`)
  })
  const answer = (await response.json().catch(() => undefined)) as { detail?: string; code?: string } | undefined
  if (response.ok && answer !== undefined) return answer
  const why = answer?.code ? `${answer.code}: ${answer.detail}` : `status ${response.status} without a problem`
  throw response.status < 500 && answer ? new Refused(why) : new Unreachable(why)
}

/** @throws ConfigError when the setting is missing */
export function requireCredential(config: Settings, name: 'OPERATOR_TOKEN' | 'GATEWAY_CREDENTIAL'): string {
  const value = config[name]
  if (!value) throw new ConfigError(`${name} or ${name}_FILE must be set`)
  return value
}
