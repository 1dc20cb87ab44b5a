/** How requests are validated, the same in production and in tests. */

import { Ajv, type Options } from 'ajv'
import addFormats from 'ajv-formats'
import type { FastifyInstance, FastifySchemaCompiler } from 'fastify'
import { invalid, Problem } from '../errors.js'
import { containsToken } from '../key/token.js'

/** Our own words in schemas: a secret field, and a rule in words for errors. */
const KEYWORDS = ['x-secret', 'x-rule', 'example']
const OPTIONS: Options = { removeAdditional: false, useDefaults: true, allErrors: false, verbose: true, keywords: KEYWORDS }
const MAX_DEPTH = 16

/** Bodies are taken as they are; only what arrives as text (query, path, headers) is turned into numbers. */
export function schemaCompiler(): FastifySchemaCompiler<object> {
  const strict = withFormats(new Ajv({ ...OPTIONS, coerceTypes: false }))
  const lenient = withFormats(new Ajv({ ...OPTIONS, coerceTypes: true }))
  return ({ schema, httpPart }) => (httpPart === 'body' ? strict : lenient).compile(schema)
}

function withFormats(ajv: Ajv): Ajv {
  // A type import under NodeNext sees the module, not its default export.
  ;(addFormats as unknown as (ajv: Ajv) => void)(ajv)
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
    inspect(request.body, 'body', 0)
  })
}

function inspect(value: unknown, field: string, depth: number): void {
  if (depth > MAX_DEPTH) throw new Problem('invalid_request', `${field} must not be nested deeper than ${MAX_DEPTH}`)
  if (typeof value === 'string') inspectText(value, field)
  else if (typeof value === 'number' && !Number.isFinite(value))
    throw new Problem('invalid_request', `${field} is a number too large to keep`)
  else if (typeof value === 'object' && value !== null)
    for (const [name, item] of Object.entries(value)) {
      inspectText(name, `a field name in ${field}`)
      // Who merges it into an object of theirs would change more than that object.
      if (name === '__proto__') throw invalid(`${field}.__proto__`, 'propertyNames', 'is no name that a field may have')
      inspect(item, `${field}.${name}`, depth + 1)
    }
}

function inspectText(text: string, field: string): void {
  if (containsToken(text))
    throw new Problem('contains_secret', 'A field of the body holds a plaintext key. Use the key\'s id instead.')
  if (text.includes('\0') || !text.isWellFormed())
    throw new Problem('invalid_request', `${field} must be Unicode text without NUL`)
}

function decodeURIComponentSafely(url: string): string {
  try {
    return decodeURIComponent(url)
  } catch {
    return url
  }
}
