/** The real service on the empty database of the test file, and short words for what tests ask of it. */

import { generateKeyPairSync, randomBytes } from 'node:crypto'
import { Writable } from 'node:stream'
import type { FastifyInstance, InjectOptions } from 'fastify'
import type { Test } from 'tap'
import { buildApp, type AppDeps } from '../../src/server/compose.js'
import { signOperatorToken } from '../../src/control/operators/builtin-issuer.js'
import { SCOPES, type Scope } from '../../src/control/operators/scopes.js'
import { loadConfig, type Environment, type Settings } from '../../src/config.js'
import { sharedCompilers } from './compilers.js'
import { emptyDatabase, type TestDatabase } from './database.js'
import { eventually } from './eventually.js'

export interface Answer {
  readonly status: number
  readonly headers: Record<string, string | string[] | number | undefined>
  readonly text: string
  readonly body: any
}

export interface Identity {
  readonly org?: string
  readonly scopes?: readonly Scope[]
  readonly crews?: readonly string[]
  readonly subject?: string
}

export interface CallOptions {
  readonly token?: string
  readonly body?: unknown
  readonly headers?: Record<string, string>
}

export interface Service {
  readonly app: FastifyInstance
  /** What is served on `AUTHZ_LISTEN`, if that is set. */
  readonly authz: FastifyInstance | undefined
  readonly config: Settings
  readonly database: TestDatabase
  readonly startDraining: () => void
  /** Every log line so far. */
  readonly logs: () => string
  /** An operator's token: of `acme`, with all scopes, unless said otherwise. */
  readonly token: (identity?: Identity) => Promise<string>
  readonly call: (method: 'GET' | 'POST' | 'PATCH' | 'PUT' | 'DELETE' | 'HEAD' | 'OPTIONS', url: string, options?: CallOptions) => Promise<Answer>
  /** Issues a key and expects it to be issued. */
  readonly issue: (body?: object, identity?: Identity) => Promise<{ key: any; plaintext_key: string }>
  /** The plaintext of a new gateway credential. */
  readonly gateway: (identity?: Identity) => Promise<string>
  /** What verify says, asked by a gateway of `acme`. */
  readonly verify: (key: string, demand?: object, gateway?: string) => Promise<any>
}

const ISSUER_KEY = generateKeyPairSync('ed25519').privateKey.export({ type: 'pkcs8', format: 'pem' }).toString()

/** The settings of a test: of a deployment, with a root secret and an issuer key of this process's own. */
export function testEnvironment(database: TestDatabase, environment: Environment = {}): Environment {
  return {
    DATABASE_URL: database.control,
    RUNTIME_DATABASE_URL: database.runtime,
    ROOT_SECRETS: randomBytes(32).toString('base64url'),
    // Room for as many is made at the start.
    CACHE_MAX_KEYS: '1000',
    BUILTIN_ISSUER: 'on',
    BUILTIN_ISSUER_KEY: ISSUER_KEY,
    ...environment,
  }
}

export async function startService(t: Pick<Test, 'teardown'>, environment: Environment = {}, given?: TestDatabase, deps: AppDeps = {}): Promise<Service> {
  const database = given ?? (await emptyDatabase())
  const config = loadConfig(testEnvironment(database, environment))
  const lines: string[] = []
  const logDestination = new Writable({ write: (line, _encoding, done) => (lines.push(String(line)), done()) })
  const { app, authz, startDraining } = await buildApp(config, { logDestination, compilers: sharedCompilers, ...deps })
  t.teardown(() => app.close())

  let gatewayOfAcme: Promise<string> | undefined
  const service: Service = {
    app, authz, config, database, startDraining,
    logs: () => lines.join(''),
    token: ({ org = 'acme', scopes = SCOPES, crews, subject = 'alice' } = {}) =>
      signOperatorToken(config, { org, scopes, subject, ttlSeconds: 600, ...(crews && { crews }) }),
    async call(method, url, { token, body, headers } = {}) {
      const request: InjectOptions = {
        method, url,
        headers: { ...(token && { authorization: `Bearer ${token}` }), ...headers },
        ...(body !== undefined && { payload: body as object }),
      }
      const { statusCode: status, headers: answered, body: text } = await app.inject(request)
      const isJson = /json/.test(String(answered['content-type']))
      return { status, headers: answered, text, body: isJson && text ? JSON.parse(text) : undefined }
    },
    async issue(body = {}, identity) {
      const answer = await service.call('POST', '/v1/keys', { token: await service.token(identity), body: { mecha: 'sales^acmecorp', ...body } })
      if (answer.status !== 201) throw new Error(`issue answered ${answer.status}: ${answer.text}`)
      return answer.body
    },
    async gateway(identity) {
      const answer = await service.call('POST', '/v1/gateways', { token: await service.token(identity), body: { name: 'edge' } })
      if (answer.status !== 201) throw new Error(`creating a gateway answered ${answer.status}: ${answer.text}`)
      return answer.body.plaintext_key
    },
    async verify(key, demand = {}, gateway) {
      const token = gateway ?? (await (gatewayOfAcme ??= service.gateway()))
      const answer = await service.call('POST', '/v1/verify', { token, body: { key, ...demand } })
      if (answer.status !== 200) throw new Error(`verify answered ${answer.status}: ${answer.text}`)
      return answer.body
    },
  }
  return service
}

/** Resolves when a service's own feed vouches for what it holds. */
export async function fresh(service: Service): Promise<void> {
  await eventually(async () => (await service.call('GET', '/metrics')).text.includes('\nmecha_keys_feed_fresh 1\n'))
}
