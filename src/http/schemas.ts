/** The shapes that both planes speak. TypeBox is the one source for validation, types and the OpenAPI document. */

import type { Static, TSchema } from 'typebox'
import type { Metadata } from '../db/tables.js'
import { CATALOGUE, type ErrorCode } from '../errors.js'
import { HANDLE_PATTERN, HANDLE_RULE } from '../credentials/handle.js'
import { ID_PATTERN } from '../credentials/id.js'
import { Type } from './type.js'

export const HandleSchema = Type.String({
  pattern: HANDLE_PATTERN,
  'x-rule': HANDLE_RULE,
  description: 'A Mecha: `name^crew`',
  examples: ['sales^acmecorp'],
})

/** The public id of a Mecha key. */
export const keyIdSchema = (description: string) =>
  Type.String({
    pattern: `^key_${ID_PATTERN}$`, 'x-rule': 'must be a key id, as in key_01jd9p5v3fe8rr2k7m4q9wx0zt',
    description, examples: ['key_01jd9p5v3fe8rr2k7m4q9wx0zt'],
  })

/** RFC 6749, section 3.3: printable ASCII without space, quote and backslash. */
export const ScopesSchema = Type.Array(
  Type.String({
    pattern: '^[\\x21\\x23-\\x5b\\x5d-\\x7e]{1,128}$',
    'x-rule': 'must be 1 to 128 printable ASCII characters without spaces, quotes and backslashes',
  }),
  { maxItems: 50, uniqueItems: true, description: 'What the key may be used for: for the platform to define, and for verify to compare', examples: [['orders:read', 'orders:write']] },
)

/** It comes back with every verify, so it is kept small. */
const MAX_METADATA_BYTES = 4096

export const MetadataSchema = Type.Unsafe<Metadata>({
  title: 'Metadata',
  type: 'object',
  additionalProperties: true,
  'x-max-bytes': MAX_METADATA_BYTES,
  description: "The platform's own notes, at most 4 KiB of JSON. No secrets",
  examples: [{ region: 'eu' }],
})

export const TimeSchema = Type.String({ format: 'date-time', description: 'RFC 3339, UTC', examples: ['2030-01-31T12:00:00.000Z'] })

/** A schema whose value may also be null. As a list of types and not as `anyOf`, which makes three errors of one. */
export function nullable<T extends TSchema>(schema: T, description?: string) {
  const { type } = schema as { type?: string }
  return Type.Unsafe<Static<T> | null>({ ...schema, type: [type, 'null'], ...(description && { description }) })
}

export const nullableTime = (description: string) => nullable(TimeSchema, `${description}. RFC 3339, UTC`)
export const nullableText = (description: string) => nullable(Type.String(), description)

const text = (description: string) => ({ type: 'string', description })
const CHALLENGE = { 'WWW-Authenticate': text('What is wrong with the credential, as RFC 6750 has it') }
const RETRY = { 'Retry-After': text('Seconds after which to try again, where trying again can help') }
const HEADERS_OF_PROBLEMS: Record<number, object> = { 401: CHALLENGE, 403: CHALLENGE, 429: RETRY, 503: RETRY }

/** What a route answers when all is well. */
export function answer<T extends TSchema>(description: string, schema: T, headers: Record<string, string> = {}) {
  return { description, headers: documented(headers), content: { 'application/json': { schema } } }
}

/** What a route without a body answers when all is well. */
export function emptyAnswer(description: string, headers: Record<string, string>) {
  return { description, headers: documented(headers), type: 'null' }
}

function documented(headers: Record<string, string>) {
  const own = Object.fromEntries(Object.entries(headers).map(([name, about]) => [name, text(about)]))
  return { 'Cache-Control': text('`no-store`'), ...own }
}

/** `response` of a route: what it answers when all is well, and the problems that it may answer with. */
export function responses<S extends object>(success: S, ...codes: ErrorCode[]): S {
  return withProblems(success, codes, 'application/problem+json', 'Problem')
}

/** The same of a route that speaks OAuth. */
export function oauthResponses<S extends object>(success: S, ...codes: ErrorCode[]): S {
  return withProblems(success, codes, 'application/json', 'OAuthError')
}

function withProblems<S extends object>(success: S, codes: ErrorCode[], type: string, schema: 'Problem' | 'OAuthError'): S {
  const contentOf = (own: ErrorCode[]) => ({ [type]: { schema: { $ref: `${schema}#` }, examples: Object.fromEntries(own.map((code) => [code, sampleRef(schema, code)])) } })
  const problems = codes.map((code) => {
    const [status] = CATALOGUE[code]
    const ofStatus = codes.filter((one) => CATALOGUE[one][0] === status)
    const headers = HEADERS_OF_PROBLEMS[status]
    const description = ofStatus.map((one) => `\`${one}\`: ${CATALOGUE[one][1]}`).join('. ')
    return [status, { description, ...(headers && { headers }), content: contentOf(ofStatus) }] as const
  })
  return { ...success, ...Object.fromEntries(problems), default: { description: 'Any other problem', content: contentOf(['internal_error']) } }
}

/** Where the contract has the sample of an error. `test/tools/openapi.ts` puts it there. */
function sampleRef(schema: string, code: ErrorCode) {
  return { $ref: `#/components/examples/${schema}.${code}` }
}
