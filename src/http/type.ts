/**
 * Schemas by TypeBox's names and with its types. What they are made by is here: to load the library, which is 370 modules, took a fifth of a
 * start, and of its functions these are used. A test holds them against the library's own.
 */

import type * as TypeBox from 'typebox'

type Schema = Readonly<Record<string, unknown>>

const optional = new WeakSet<Schema>()
const of = (type: string) => (options?: Schema) => ({ type, ...options })

export const Type = {
  Array: (items: Schema, options?: Schema) => ({ type: 'array', items, ...options }),
  Boolean: of('boolean'),
  Integer: of('integer'),
  Literal: (value: unknown, options?: Schema) => ({ type: typeof value, const: value, ...options }),
  Null: of('null'),
  Object(properties: Readonly<Record<string, Schema>>, options?: Schema) {
    const required = Object.keys(properties).filter((name) => !optional.has(properties[name]!))
    return { type: 'object', ...(required.length > 0 && { required }), properties, ...options }
  },
  /** The same as a field that may be left out. */
  Optional(schema: Schema) {
    const field = { ...schema }
    optional.add(field)
    return field
  },
  /** Of any names. */
  Record: (_name: Schema, value: Schema, options?: Schema) => ({ type: 'object', patternProperties: { '^.*$': value }, ...options }),
  Ref: ($ref: string, options?: Schema) => ({ $ref, ...options }),
  String: of('string'),
  Union: (anyOf: readonly Schema[], options?: Schema) => ({ anyOf, ...options }),
  Unsafe: (schema: Schema) => schema,
} as unknown as Pick<typeof TypeBox.Type, 'Array' | 'Boolean' | 'Integer' | 'Literal' | 'Null' | 'Object' | 'Optional' | 'Record' | 'Ref' | 'String' | 'Union' | 'Unsafe'>
