/** The OpenAPI document, for tests that hold the service against it. */

import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import addFormats from 'ajv-formats'
import { Ajv2020, type ValidateFunction } from 'ajv/dist/2020.js'
import { PACKAGE_ROOT } from '../../src/package-root.js'

export interface Parameter {
  readonly in: 'path' | 'query' | 'header'
  readonly name: string
  readonly required: boolean
  readonly description?: string
  readonly example?: unknown
  readonly schema: object
}

export interface Media {
  readonly schema: object
  readonly example?: unknown
  readonly examples?: Record<string, { readonly $ref: string }>
}

export interface Operation {
  readonly operationId: string
  readonly summary: string
  readonly description: string
  readonly 'x-scope'?: string
  readonly tags: string[]
  readonly security: Record<string, string[]>[]
  readonly parameters?: Parameter[]
  readonly requestBody?: { readonly required: boolean; readonly content: Record<string, Media> }
  readonly responses: Record<string, { readonly description: string; readonly headers?: Record<string, { schema: object }>; readonly content?: Record<string, Media> }>
}

export interface Contract {
  readonly openapi: string
  readonly info: { readonly title: string; readonly version: string }
  readonly tags: { readonly name: string }[]
  readonly components: { readonly securitySchemes: Record<string, object>; readonly schemas: Record<string, object>; readonly examples: Record<string, { readonly value: unknown }> }
  readonly paths: Record<string, Record<string, Operation>>
}

export interface Entry {
  readonly method: string
  readonly path: string
  /** `POST /v1/keys`. */
  readonly name: string
  readonly operation: Operation
}

/** As it is committed and served. That it is what the routes say is held by `test/docs/openapi.test.ts`. */
export function contractOf(): Contract {
  return JSON.parse(readFileSync(join(PACKAGE_ROOT, 'openapi', 'openapi.json'), 'utf8')) as Contract
}

export function operationsOf({ paths }: Contract): Entry[] {
  return Object.entries(paths).flatMap(([path, methods]) =>
    Object.entries(methods).map(([method, operation]) => ({ method: method.toUpperCase(), path, name: `${method.toUpperCase()} ${path}`, operation })),
  )
}

/** The operations that frontends call. */
export function controlPlaneOf(contract: Contract): Entry[] {
  return operationsOf(contract).filter(({ operation }) => operation.tags[0] === 'control')
}

/** The one status that says that all went well. */
export function successOf({ responses }: Operation): string {
  const [status, ...more] = Object.keys(responses).filter((one) => one.startsWith('2'))
  if (!status || more.length > 0) throw new Error('an operation has one success')
  return status
}

/** Compiles what stands at a place of the document, given as the names on the way to it. */
export function compilerOf(contract: Contract): (...place: string[]) => ValidateFunction {
  const ajv = new Ajv2020({ strict: false, allErrors: true })
  // A type import under NodeNext sees the module, not its default export.
  ;(addFormats as unknown as (ajv: Ajv2020) => void)(ajv)
  ajv.addSchema(contract, 'contract')
  return (...place) => {
    const pointer = place.map((name) => encodeURIComponent(name.replaceAll('~', '~0').replaceAll('/', '~1')))
    return ajv.compile({ $ref: `contract#/${pointer.join('/')}` })
  }
}
