/** What a log line may hold. Redaction is built from the schemas' own marks, so that no list of names can fall behind. */

import type { FastifyBaseLogger, FastifyInstance, FastifyRequest } from 'fastify'
import { pino, type Bindings, type ChildLoggerOptions, type DestinationStream, type Logger } from 'pino'
import type { Problem } from '../errors.js'
import { publicId } from '../credentials/id.js'
import { redactTokens } from '../credentials/token.js'
import { SECRET_HEADERS } from '../http/headers.js'

/** Names of all properties marked `x-secret: true` anywhere below the given schemas. */
export function secretFields(schemas: readonly unknown[]): string[] {
  const found = new Set<string>()
  const visit = (schema: unknown) => {
    if (typeof schema !== 'object' || schema === null) return
    const { properties } = schema as { properties?: Record<string, { 'x-secret'?: boolean }> }
    for (const [name, property] of Object.entries(properties ?? {})) if (property['x-secret']) found.add(name)
    for (const part of Object.values(schema)) visit(part)
  }
  schemas.forEach(visit)
  return [...found].sort()
}

/**
 * The logger of a request, which becomes a child of the service's with its first line. Most requests write none: what
 * happened to them is one line of the service's own, and to make a child costs more than to verify a key.
 */
class RequestLogger {
  #child: FastifyBaseLogger | undefined
  constructor(
    private readonly parent: FastifyBaseLogger,
    private readonly bindings: Bindings,
    private readonly options: ChildLoggerOptions,
  ) {}

  get level(): string {
    return this.parent.level
  }

  own(): FastifyBaseLogger {
    return (this.#child ??= this.parent.child(this.bindings, this.options))
  }

  child(bindings: Bindings, options?: ChildLoggerOptions): FastifyBaseLogger {
    return this.own().child(bindings, options)
  }
}
for (const level of ['fatal', 'error', 'warn', 'info', 'debug', 'trace', 'silent'] as const)
  Object.defineProperty(RequestLogger.prototype, level, {
    value(this: RequestLogger, ...line: [unknown, string?]) {
      this.own()[level](...line)
    },
  })

/** For Fastify's `childLoggerFactory`. */
export function requestLogger(parent: FastifyBaseLogger, bindings: Bindings, options: ChildLoggerOptions): FastifyBaseLogger {
  return new RequestLogger(parent, bindings, options) as unknown as FastifyBaseLogger
}

/** Probes ask for it every few seconds, so its lines are logged at `debug`. */
const LIVENESS = '/livez'

/** One line for each request: what was asked, what was answered, how long it took; of one that was refused, why and whose it was. */
export function logRequests(app: FastifyInstance): void {
  // A hook that writes nothing would still cost every request its turn.
  if (!(app.log as Logger).isLevelEnabled('info')) return
  app.addHook('onResponse', (request, reply, done) => {
    const ms = Math.round(reply.elapsedTime * 100) / 100
    const level = request.routeOptions.url === LIVENESS ? 'debug' : 'info'
    app.log[level]({ request_id: request.id, req: request, status: reply.statusCode, ms, ...(reply.refusal && refusalLine(request, reply.refusal)) }, 'request')
    done()
  })
}

/** A problem's detail is for the caller: no secret is in it. Who was refused is named as the audit trail names them. */
function refusalLine({ operator, gateway }: Partial<FastifyRequest>, { code, detail }: Problem) {
  return { code, reason: detail, ...(operator && { actor: operator.actor }), ...(gateway?.id && { gateway: publicId('gateway', gateway.id) }) }
}

const PHC = /\$argon2id?\$[^"\s\\]+/g

export interface LogOptions {
  readonly level: string
  /** Names of fields that are masked wherever they stand, up to three levels deep. */
  readonly secrets: readonly string[]
  /** Where lines go; standard output otherwise. */
  readonly destination?: DestinationStream
  /** What is added to each line. */
  readonly fields?: (() => object) | undefined
}

/** JSON lines, or something to read on a terminal. */
export function createLogger({ level, secrets, destination, fields }: LogOptions): Logger {
  const names = [...secrets, ...SECRET_HEADERS, 'body'].map((name) => `["${name}"]`)
  const paths = names.flatMap((name) => [name, `*${name}`, `*.*${name}`, `*.*.*${name}`])
  const options = {
    level,
    ...(fields && { mixin: fields }),
    redact: { paths, censor: '[redacted]' },
    serializers: { req: serializeRequest, err: serializeError },
    // The last line of defence: no key and no hash leaves in a line, whatever it was made of.
    hooks: { streamWrite: (line: string) => redactTokens(line).replace(PHC, '[redacted]') },
  }
  if (destination) return pino(options, destination)
  if (!process.stdout.isTTY || !hasPrettyPrinter()) return pino(options, standardOutput())
  return pino({ ...options, transport: { target: 'pino-pretty', options: { ignore: 'pid,hostname', translateTime: 'SYS:HH:MM:ss.l' } } })
}

/** Bytes that wait for a reader who does not keep up. What comes then is dropped: requests do not wait for a log. */
const BACKLOG = 1024 * 1024
/** Longest wait for such a reader at the end. */
const LAST_WORDS_MS = 1000

function standardOutput(): DestinationStream {
  let end = Infinity
  // Listens before pino does, which writes the rest when the process exits, and for as long as it is told to try again.
  process.once('exit', () => (end = performance.now() + LAST_WORDS_MS))
  const stream = pino.destination({ fd: 1, sync: false, maxLength: BACKLOG, retryEAGAIN: () => performance.now() < end })
  const flush = stream.flushSync.bind(stream)
  stream.flushSync = () => {
    try {
      flush()
    } catch {
      // Nobody reads standard output any more, so there is nowhere to report it.
    }
  }
  return stream
}

/** The route's pattern and not the path: a path can hold what somebody pasted into it. */
function serializeRequest(request: FastifyRequest) {
  return { method: request.method, route: request.routeOptions?.url ?? null, address: request.ip }
}

/** PostgreSQL puts a failing row into an error's `detail`, so only what cannot hold a row is kept. */
function serializeError(error: Error & { code?: unknown }) {
  return { type: error.name, code: error.code, message: error.message, stack: error.stack }
}

/** It is a development dependency: an image without it logs JSON on a terminal too. */
function hasPrettyPrinter(): boolean {
  try {
    import.meta.resolve('pino-pretty')
    return true
  } catch {
    return false
  }
}
