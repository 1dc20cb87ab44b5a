/** How an answer of the service is read: as JSON, as a verdict, or as the reason why there is none. */

import type { IncomingHttpHeaders, IncomingMessage } from 'node:http'
import { VerifierUnavailable } from './errors.js'
import type { Verdict } from './verdict.js'

/** Longer than any answer. */
const MAX_ANSWER_BYTES = 256 * 1024

export async function readJson(response: IncomingMessage): Promise<unknown> {
  let text = ''
  for await (const chunk of response.setEncoding('utf8') as AsyncIterable<string>) {
    text += chunk
    if (text.length > MAX_ANSWER_BYTES) throw new Error('the answer is too long')
  }
  try {
    return JSON.parse(text)
  } catch {
    return undefined
  }
}

export function isVerdict(body: unknown): body is Verdict {
  const verdict = body as Partial<Record<string, unknown>> | null | undefined
  if (verdict?.['valid'] === false) return typeof verdict['code'] === 'string'
  const mecha = verdict?.['mecha'] as Partial<Record<string, unknown>> | null | undefined
  return (
    verdict?.['valid'] === true && typeof verdict['key_id'] === 'string' && typeof mecha?.['handle'] === 'string'
    && typeof verdict['org_id'] === 'string' && Array.isArray(verdict['scopes']) && isTimeOrNull(verdict['expires_at'])
  )
}

function isTimeOrNull(value: unknown): boolean {
  return value === null || (typeof value === 'string' && !Number.isNaN(Date.parse(value)))
}

export function headerOf(headers: IncomingHttpHeaders, name: string): string | undefined {
  const value = headers[name]
  return typeof value === 'string' && value !== '' ? value : undefined
}

export function codeOf(body: unknown): string | undefined {
  const code = (body as { code?: unknown } | null | undefined)?.code
  return typeof code === 'string' ? code : undefined
}

export function unreachable(cause: unknown): VerifierUnavailable {
  return cause instanceof VerifierUnavailable ? cause : new VerifierUnavailable('service_unreachable', 'the service does not answer', { cause })
}

export function refusal(status: number, body: unknown): VerifierUnavailable {
  if (status === 401) return new VerifierUnavailable('credential_refused', "the service does not take this gateway's credential")
  const code = codeOf(body)
  return new VerifierUnavailable('service_unavailable', `the service answered ${status}${code ? ` (${code})` : ''}`)
}
