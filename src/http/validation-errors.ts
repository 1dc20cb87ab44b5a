/** Which rules a request breaks, all of them, in words for people. What the caller chose is masked and cut where it is shown. */

import type { FastifyRequest } from 'fastify'
import type { FieldError } from '../errors.js'
import { redactTokens } from '../credentials/token.js'

/** As Ajv tells of a broken rule. */
export interface AjvError {
  readonly keyword: string
  readonly instancePath: string
  readonly params: Readonly<Record<string, unknown>>
  /** What the schema says with this keyword: `100` of `maxLength`. */
  readonly schema?: unknown
  readonly parentSchema?: { readonly 'x-rule'?: string }
  readonly data?: unknown
}

/** A schema, compiled: stops at the first broken rule, and can be asked for all. */
export interface Validate {
  (value: unknown): boolean
  readonly all: (value: unknown) => AjvError[]
}

export const PLACES = { params: 'path', body: 'body', querystring: 'query', headers: 'headers' } as const
type Part = keyof typeof PLACES

/** Values in a body: more than any valid one has. Who sends more is told of the first broken rule and not of all, which could be millions. */
const MAX_VALUES = 10_000
const MAX_FIELD_LENGTH = 200

/**
 * Every rule of its route's schemas that a request breaks.
 *
 * @param first what was found by what stops at the first
 */
export function brokenRules(request: FastifyRequest, first: readonly FieldError[] = []): readonly FieldError[] {
  if (hasTooManyValues(request.body)) return first
  const all = (Object.keys(PLACES) as Part[]).flatMap((part) => {
    const validate = request.getValidationFunction(part) as Validate | undefined
    return validate?.all(part === 'querystring' ? request.query : request[part]).map((error) => fieldError(part, error)) ?? []
  })
  // A name that is too long and has control characters breaks two rules that are one in words.
  return [...new Map(all.map((error) => [`${error.field} ${error.message}`, error])).values()]
}

/** A broken rule as the caller is told of it. A schema may put its rule in words with `x-rule`; values are never repeated. */
export function fieldError(part: string, error: AjvError): FieldError {
  const { keyword, instancePath, params, data } = error
  const more = params['missingProperty'] ?? params['additionalProperty']
  const path = instancePath.split('/').slice(1).concat(typeof more === 'string' ? more : [])
  const field = fieldName(PLACES[part as Part] ?? part, path)
  if (instancePath === '' && data === undefined) return { field, rule: 'required', message: 'is required' }
  return { field, rule: RULES[keyword] ?? keyword, message: messageOf(error) }
}

/** A field by the names on the way to it, as it may be shown: the caller may have chosen them, and they could be anything. */
export function fieldName(place: string, path: readonly string[]): string {
  const name = [place, ...path.map(shown)].join('.')
  return name.length > MAX_FIELD_LENGTH ? `${name.slice(0, MAX_FIELD_LENGTH - 1)}…` : name
}

/** Longer than a name that somebody gave a field, and as long as a secret. */
const OPAQUE = /[\w+/=~-]{32,}/g

function shown(name: string): string {
  return redactTokens(name).replace(OPAQUE, '[masked]').replace(/[\p{C}\p{Zl}\p{Zp}]/gu, '�')
}

/** Our own keywords, by the rule that they are. */
const RULES: Record<string, string> = { 'x-max-bytes': 'maximum', 'x-not-with': 'exclusive' }

const KINDS: Record<string, string> = {
  string: 'text', integer: 'a whole number', number: 'a number', boolean: 'true or false', array: 'a list', object: 'an object', null: 'null',
}

function messageOf({ keyword, schema, parentSchema }: AjvError): string {
  if (keyword === 'required') return 'is required'
  if (keyword === 'additionalProperties') return 'is not a field of this request'
  return parentSchema?.['x-rule'] ?? MESSAGES[keyword]?.(schema) ?? 'is not valid'
}

const MESSAGES: Record<string, (rule: unknown) => string> = {
  'enum': (values) => `must be one of ${(values as string[]).join(', ')}`,
  'type': (types) => `must be ${[types].flat().map((one) => KINDS[one as string]).join(' or ')}`,
  'format': () => 'must be a time as RFC 3339 has it, such as 2030-01-31T12:00:00Z',
  'minimum': (limit) => `must be at least ${String(limit)}`,
  'maximum': (limit) => `must be at most ${String(limit)}`,
  'minLength': (limit) => `must have at least ${count(limit, 'character')}`,
  'maxLength': (limit) => `must have at most ${count(limit, 'character')}`,
  'minItems': (limit) => `must have at least ${count(limit, 'entry', 'entries')}`,
  'maxItems': (limit) => `must have at most ${count(limit, 'entry', 'entries')}`,
  'uniqueItems': () => 'must not have the same entry twice',
  'minProperties': (limit) => `must have at least ${count(limit, 'field')}`,
  'x-max-bytes': (limit) => `must be at most ${String(limit)} bytes of JSON`,
  'x-not-with': (other) => `cannot be given together with ${String(other)}`,
}

function count(limit: unknown, one: string, many = `${one}s`): string {
  return limit === 1 ? `one ${one}` : `${String(limit)} ${many}`
}

/** Counted without recursion: a body that nobody has looked at may be nested to any depth. */
function hasTooManyValues(body: unknown): boolean {
  const rest = [body]
  let seen = 0
  while (rest.length > 0) {
    const value = rest.pop()
    if (typeof value !== 'object' || value === null) continue
    const values: unknown[] = Array.isArray(value) ? value : Object.values(value)
    seen += values.length
    if (seen > MAX_VALUES) return true
    rest.push(...values)
  }
  return false
}
