/** Short words for what tests of the OAuth side ask. */

import type { AddressInfo } from 'node:net'
import type { Answer, Service } from './service.js'

export const EXCHANGE = 'urn:ietf:params:oauth:grant-type:token-exchange'
export const ACCESS_TOKEN = 'urn:ietf:params:oauth:token-type:access_token'

export type Form = Record<string, string | string[]>

/** Sends a form. */
export function sendForm(service: Service, url: string, form: Form | string, headers: Record<string, string> = {}): Promise<Answer> {
  const pairs = typeof form === 'string' ? [] : Object.entries(form).flatMap(([name, value]) => [value].flat().map((one): [string, string] => [name, one]))
  const body = typeof form === 'string' ? form : new URLSearchParams(pairs).toString()
  return service.call('POST', url, { body, headers: { 'content-type': 'application/x-www-form-urlencoded', ...headers } })
}

/** What the token endpoint answers to a key. */
export function exchange(service: Service, key: string, more: Form = {}): Promise<Answer> {
  return sendForm(service, '/v1/token', { grant_type: EXCHANGE, subject_token: key, subject_token_type: ACCESS_TOKEN, ...more })
}

/** The JWT that a key is exchanged for, when it is. */
export async function exchanged(service: Service, key: string, more: Form = {}): Promise<string> {
  const answer = await exchange(service, key, more)
  if (answer.status !== 200) throw new Error(`exchange answered ${answer.status}: ${answer.text}`)
  return answer.body.access_token
}

/** What introspection says, asked by a gateway. */
export async function introspect(service: Service, gateway: string, token: string): Promise<any> {
  const answer = await sendForm(service, '/v1/introspect', { token }, { authorization: `Bearer ${gateway}` })
  if (answer.status !== 200) throw new Error(`introspection answered ${answer.status}: ${answer.text}`)
  return answer.body
}

/** The service on a free port, for clients that speak HTTP. */
export async function listen({ app }: Service): Promise<string> {
  await app.listen({ host: '127.0.0.1', port: 0 })
  return `http://127.0.0.1:${(app.server.address() as AddressInfo).port}`
}
