/**
 * Compilers of schemas for apps of which a process starts many: what is compiled is what the service compiles, once for all of them, and when it
 * is first needed. A service that is started by itself, as other tests do it, compiles everything at its start.
 */

import fastJsonStringify from 'fast-json-stringify'
import type { FastifyInstance } from 'fastify'
import type { SchemaCompilers } from '../../src/app.js'
import { schemaCompiler } from '../../src/http/validation.js'

/** As the service's own compiler makes them: with what finds all broken rules. */
type Validate = ReturnType<typeof compileValidator> & { readonly all: (value: unknown) => unknown[]; readonly errors?: unknown }
type Serialize = (data: unknown) => string

const compileValidator = schemaCompiler()
const validators = new Map<string, () => Validate>()
const serializers = new Map<string, () => Serialize>()

export const sharedCompilers: SchemaCompilers = {
  validator({ schema, httpPart, ...route }) {
    const validate = once(validators, `${httpPart === 'body'} ${JSON.stringify(schema)}`, () => compileValidator({ schema, httpPart, ...route } as never) as unknown as Validate)
    const lazily = Object.assign(
      (value: unknown) => {
        const isValid = validate()(value)
        lazily.errors = validate().errors
        return isValid
      },
      { all: (value: unknown) => validate().all(value), errors: undefined as Validate['errors'] },
    )
    return lazily as never
  },
  serializer(app: FastifyInstance) {
    const schemas = app.getSchemas()
    const names = Object.keys(schemas).join()
    return ({ schema }) => {
      const serialize = once(serializers, `${names} ${JSON.stringify(schema)}`, () => fastJsonStringify(schema as never, { schema: schemas as never }))
      return (data) => serialize()(data)
    }
  },
}

/** What is made the first time that it is asked for. */
function once<T>(known: Map<string, () => T>, key: string, make: () => T): () => T {
  let made: T | undefined
  if (!known.has(key)) known.set(key, () => (made ??= make()))
  return known.get(key)!
}
