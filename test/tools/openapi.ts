/**
 * The contract: made from the routes' own schemas, so that it cannot say anything else than they do. It is made when one of them changes
 * and not when the service starts, which serves what was made (`src/server/pages.ts`).
 */

import { isDeepStrictEqual } from 'node:util'
import swagger from '@fastify/swagger'
import type { FastifyInstance } from 'fastify'
import { Problem, type ErrorCode } from '../../src/errors.js'
import { HANDLE_RULE } from '../../src/credentials/handle.js'
import { oauthError } from '../../src/http/oauth-errors.js'
import { VERSION } from '../../src/package-root.js'

const DESCRIPTION = [
  'Issues, lists, rotates, revokes and verifies Mecha keys: the runtime credentials of named AI workers.',
  'Operators call the control plane with a bearer JWT whose claims name their organization and their scopes. Gateways call the runtime plane with a gateway credential.',
  'Bodies are JSON, times are RFC 3339 in UTC, and every error is a problem (RFC 9457) whose `code` is stable and whose `type` is the path of a page that explains it. What is not the caller\'s is answered exactly as what does not exist; a handle alone shows, where it may be taken, that somebody has it.',
  'Every answer has an `X-Request-Id`, which names the request in the log and in the audit trail: the caller\'s own where it sent one of up to 64 letters, digits, `.`, `_` and `-`. No answer under `/v1` may be cached.',
].join('\n\n')

/** Must be registered before the routes that it describes; `app.swagger()` is the contract then. */
export async function describeRoutes(app: FastifyInstance): Promise<void> {
  await app.register(swagger, {
    openapi: {
      openapi: '3.1.0',
      info: {
        title: 'mecha-keys',
        version: VERSION,
        description: DESCRIPTION,
        contact: { name: 'Whoever runs this service' },
        license: { name: 'Unlicensed', identifier: 'LicenseRef-UNLICENSED' },
      },
      servers: [{ url: '/', description: 'Where this document is served' }],
      tags: [
        { name: 'control', description: 'Operators issue and govern' },
        { name: 'runtime', description: 'Gateways verify' },
        { name: 'ops', description: 'Probes' },
      ],
      components: {
        securitySchemes: {
          operator: { type: 'http', scheme: 'bearer', bearerFormat: 'JWT', description: 'A token of a trusted issuer; its claims name the organization and the scopes. An operation says which scope it needs, for programs in `x-scope`' },
          gateway: { type: 'http', scheme: 'bearer', bearerFormat: 'mgw_…', description: 'A gateway credential' },
          gatewayBasic: { type: 'http', scheme: 'basic', description: 'The id of a gateway credential as user name, and the credential as password' },
          proxy: { type: 'apiKey', in: 'header', name: 'X-Gateway-Authorization', description: '`Bearer` and a gateway credential, beside what the client sends as its own' },
          mechaKey: { type: 'apiKey', in: 'header', name: 'X-Mecha-Key', description: 'A Mecha key. It may come as the bearer token of `Authorization` instead' },
        },
      },
    },
    transformObject: (made) => {
      if (!('openapiObject' in made)) return made.swaggerObject
      const document = made.openapiObject as unknown as Document
      const operations = Object.values(document.paths).flatMap((path) => Object.values(path))
      operations.forEach(correct)
      document.components.examples = samplesFor(operations)
      return nameSchemas(document)
    },
    refResolver: { buildLocalReference: (json, _base, _fragment, i) => (typeof json.$id === 'string' ? json.$id : `schema-${i}`) },
  })
}

/** As much of the document, and of an operation, as is looked at here. */
interface Document {
  readonly paths: Record<string, Record<string, Operation>>
  readonly components: { readonly schemas?: Record<string, object>; examples?: Record<string, object> }
}
interface Operation {
  readonly summary: string
  description?: string
  readonly 'x-scope'?: string
  readonly parameters?: { readonly in: string; name: string; example?: unknown }[]
  readonly requestBody?: { required: boolean; readonly content: Record<string, { schema: { required?: string[]; minProperties?: number } }> }
  readonly responses: Record<string, { readonly content?: Record<string, { readonly examples?: Record<string, { readonly $ref?: string }> }> }>
}

/** What the plugin cannot know. */
function correct(operation: Operation): void {
  const { requestBody, parameters = [], summary, description = `${summary}.`.replace('?.', '?'), 'x-scope': scope } = operation
  operation.description = scope ? `${description}\n\nThe token needs the scope \`${scope}\`.` : description
  // A body that may be empty may be left out.
  for (const { schema } of Object.values(requestBody?.content ?? {}))
    requestBody!.required = schema.required !== undefined || schema.minProperties !== undefined
  for (const parameter of parameters) {
    // Tools fill in examples. A filter that nobody chose hides keys; an Idempotency-Key that nobody chose kills the first plaintext when it is sent twice.
    if (parameter.in !== 'path') delete parameter.example
    // As people spell it.
    if (parameter.in === 'header') parameter.name = parameter.name.replace(/\b[a-z]/g, (letter) => letter.toUpperCase())
  }
}

/** A sample of each error that an operation refers to. */
function samplesFor(operations: Operation[]): Record<string, { value: object }> {
  const media = operations.flatMap(({ responses }) => Object.values(responses)).flatMap(({ content = {} }) => Object.values(content))
  const names = media.flatMap(({ examples = {} }) => Object.values(examples)).flatMap(({ $ref }) => $ref?.split('/').at(-1) ?? [])
  return Object.fromEntries([...new Set(names)].sort().map((name) => [name, { value: sampleOf(name) }]))
}

function sampleOf(name: string): object {
  const [schema, code] = name.split('.') as ['Problem' | 'OAuthError', ErrorCode]
  const errors = code === 'invalid_request' && { errors: [{ field: 'body.mecha', rule: 'pattern', message: HANDLE_RULE }] }
  const problem = new Problem(code, '…', { ...errors })
  return schema === 'Problem' ? problem.toJSON() : oauthError(problem)
}

/** Words whose values are no schemas. */
const VALUES = ['example', 'examples', 'default', 'enum', 'const']

/**
 * The document with every schema that has a title as a component of that name, for which programs that are generated
 * have a type then, instead of one of their own for each place where it occurs.
 */
function nameSchemas({ paths, components, ...rest }: Document): object {
  const schemas: Record<string, object> = {}
  for (const [name, schema] of Object.entries(components.schemas ?? {})) schemas[name] = named(schema, name) as object
  return { ...rest, components: { ...components, schemas }, paths: named(paths) }

  function named(value: unknown, self?: string): unknown {
    if (Array.isArray(value)) return value.map((one) => named(one))
    if (typeof value !== 'object' || value === null) return value
    const copy: Record<string, unknown> = Object.fromEntries(Object.entries(value).map(([word, one]) => [word, VALUES.includes(word) ? one : named(one)]))
    const { title } = copy
    if (typeof title !== 'string' || title === self) return copy
    if (title in schemas && !isDeepStrictEqual(schemas[title], copy)) throw new Error(`two schemas have the title ${title}`)
    schemas[title] = copy
    return { $ref: `#/components/schemas/${title}` }
  }
}
