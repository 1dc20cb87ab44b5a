/** How requests are validated, the same in production and in tests. */

import { Ajv, type Options } from 'ajv'
import type { DataValidationCxt } from 'ajv/dist/types/index.js'
import addFormats from 'ajv-formats'
import fastJsonStringify, { type Schema } from 'fast-json-stringify'
import type { FastifyInstance, FastifySchemaCompiler, FastifySchemaValidationError, FastifySerializerCompiler } from 'fastify'
import { invalid, invalidRequest, Problem, type FieldError } from '../errors.js'
import { containsToken } from '../credentials/token.js'
import { brokenRules, fieldName, type AjvError, type Validate } from './validation-errors.js'

/** Keywords of this project that do not restrict a value: they mark a secret field, or word a rule for errors. */
const KEYWORDS = ['x-secret', 'x-rule', 'example']
const OPTIONS: Options = { removeAdditional: false, useDefaults: true, verbose: true, keywords: KEYWORDS }
const MAX_DEPTH = 16

/** What Fastify asks for compilers. Given these, it does not load its own. */
export interface Compilers {
  readonly buildValidator: () => FastifySchemaCompiler<object>
  /** @param known schemas that others refer to */
  readonly buildSerializer: (known: Record<string, Schema>) => FastifySerializerCompiler<object>
}

export function createCompilers(): Compilers {
  const validator = schemaCompiler()
  return { buildValidator: () => validator, buildSerializer: answerCompiler }
}

/**
 * Compiles the schemas of requests, each when the first request comes that is held against it: to compile all of them was most of a start.
 * Bodies are taken as they are; only what arrives as text (query, path, headers) is turned into numbers.
 */
function schemaCompiler(): FastifySchemaCompiler<object> {
  const body = compilers({ ...OPTIONS, coerceTypes: false })
  const text = compilers({ ...OPTIONS, coerceTypes: true })
  return ({ schema, httpPart }) => {
    const [first, all] = httpPart === 'body' ? body : text
    const compiled = lazy(() => first().compile(schema))
    const validate = (value: unknown) => {
      const isValid = compiled()(value)
      validate.errors = compiled().errors ?? null
      return isValid
    }
    validate.errors = null as FastifySchemaValidationError[] | null
    // A request is checked to its end only to explain a refusal. Refusing what costs nothing to send must itself cost little.
    validate.all = ((value) => {
      const validateAll = all().compile(schema)
      return validateAll(value) ? [] : (validateAll.errors as AjvError[])
    }) satisfies Validate['all']
    return validate
  }
}

/** Compiles the schemas of answers, in the same way. */
function answerCompiler(known: Record<string, Schema>): FastifySerializerCompiler<object> {
  return ({ schema }) => {
    const compiled = lazy(() => fastJsonStringify(schema as Schema, { schema: known }))
    return (data) => compiled()(data)
  }
}

/** What stops at the first broken rule, and what finds all. */
function compilers(options: Options): [first: () => Ajv, all: () => Ajv] {
  return [lazy(() => withKeywords(new Ajv({ ...options, allErrors: false }))), lazy(() => withKeywords(new Ajv({ ...options, allErrors: true })))]
}

/** Makes a value when it is first asked for. */
function lazy<T>(make: () => T): () => T {
  let made: T | undefined
  return () => (made ??= make())
}

function withKeywords(ajv: Ajv): Ajv {
  // A type import under NodeNext sees the module, not its default export.
  ;(addFormats as unknown as (ajv: Ajv) => void)(ajv)
  ajv.addKeyword({ keyword: 'x-max-bytes', type: 'object', compile: (limit: number) => (value: object) => Buffer.byteLength(JSON.stringify(value)) <= limit })
  ajv.addKeyword({ keyword: 'x-not-with', compile: (other: string) => (_value: unknown, place?: DataValidationCxt) => place?.parentData[other] === undefined })
  return ajv
}

/**
 * Refuses, wherever a plaintext key has no business (a note, a reason, a path), a request that carries one: it would
 * be stored or logged. And what PostgreSQL cannot store as text or JSON.
 */
export function refuseSecretsAndUnstorable(app: FastifyInstance): void {
  app.addHook('preValidation', async (request) => {
    if (containsToken(decodeURIComponentSafely(request.url)))
      throw new Problem('contains_secret', 'The path or query holds a plaintext key. Use the key\'s id, and revoke the key: it may have been logged on its way here.')
    // A body that was left out is validated as an empty object. `null` is not one.
    if (request.body === undefined) request.body = {}
    const found: FieldError[] = []
    inspect(request.body, [], found)
    if (found.length > 0) throw invalidRequest([...found, ...brokenRules(request)])
  })
}

/** Adds what cannot be stored to what was found. */
function inspect(value: unknown, path: readonly string[], found: FieldError[]): void {
  // Deeper levels would be stored without having been checked.
  if (path.length > MAX_DEPTH) throw invalid(fieldName('body', path), 'depth', `must not be nested deeper than ${MAX_DEPTH}`)
  if (typeof value === 'string') inspectText(value, path, 'must be Unicode text without NUL', found)
  else if (typeof value === 'number' && !Number.isFinite(value)) found.push({ field: fieldName('body', path), rule: 'maximum', message: 'is a number too large to keep' })
  else if (typeof value === 'object' && value !== null)
    for (const [name, item] of Object.entries(value)) {
      const place = [...path, name]
      inspectText(name, place, 'must have a name that is Unicode text without NUL', found)
      // Code that merges such an object into another one would change the prototype of all objects.
      if (name === '__proto__') found.push({ field: fieldName('body', place), rule: 'propertyNames', message: 'is no name that a field may have' })
      inspect(item, place, found)
    }
}

function inspectText(text: string, path: readonly string[], message: string, found: FieldError[]): void {
  if (containsToken(text))
    throw new Problem('contains_secret', 'A field of the body holds a plaintext key. Use the key\'s id instead.')
  if (text.includes('\0') || !text.isWellFormed()) found.push({ field: fieldName('body', path), rule: 'text', message })
}

function decodeURIComponentSafely(url: string): string {
  try {
    return decodeURIComponent(url)
  } catch {
    return url
  }
}
