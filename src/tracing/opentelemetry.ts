/** Traces by OpenTelemetry, sent by OTLP. The only module that loads anything of it, and loaded itself only when it is wanted. */

import { AsyncLocalStorage } from 'node:async_hooks'
import { setTimeout as sleep } from 'node:timers/promises'
import { ROOT_CONTEXT, SpanKind, SpanStatusCode, trace, type Context, type Span, type SpanContext, type Tracer } from '@opentelemetry/api'
import { ExportResultCode, parseTraceParent } from '@opentelemetry/core'
import { OTLPTraceExporter } from '@opentelemetry/exporter-trace-otlp-proto'
import { defaultResource, resourceFromAttributes } from '@opentelemetry/resources'
import { AlwaysOffSampler, AlwaysOnSampler, BatchSpanProcessor, ParentBasedSampler, TraceIdRatioBasedSampler, TracerProvider, type Sampler, type SpanExporter } from '@opentelemetry/sdk-trace'
import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify'
import type { Attributes, SamplerName, Tracing, Work } from './tracing.js'

export interface TracingOptions {
  /** Where traces are sent: the whole URL. */
  readonly url: string
  readonly headers: Readonly<Record<string, string>>
  readonly compression: 'none' | 'gzip'
  /** Longest that one export may take. */
  readonly timeoutMs: number
  readonly resource: Attributes
  readonly sampler: SamplerName
  /** Which part of all traces a ratio samples. */
  readonly ratio: number
  /** Most spans that wait to be sent; what comes then is dropped. */
  readonly queueSize: number
  /** How often spans are sent. */
  readonly delayMs: number
  readonly version: string
  /** Called when exports begin to fail, with the reason, and when they succeed again. */
  readonly onExport: (error: Error | undefined) => void
}

/** Asked every few seconds by programs, for as long as the process lives. */
const NOT_TRACED = new Set(['/livez', '/readyz', '/metrics'])
/** Nothing of ours is longer. */
const LONGEST_VALUE = 200
const BATCH_SIZE = 512

declare module 'fastify' {
  interface FastifyRequest {
    span: Span | undefined
  }
}

export function startTracing(options: TracingOptions): Tracing {
  const { queueSize, delayMs, timeoutMs } = options
  const processor = new BatchSpanProcessor({
    exporter: watched(options),
    maxQueueSize: queueSize,
    maxExportBatchSize: Math.min(BATCH_SIZE, queueSize),
    scheduledDelayMillis: delayMs,
    exportTimeoutMillis: timeoutMs + 1000,
  })
  const provider = new TracerProvider({
    resource: defaultResource().merge(resourceFromAttributes(options.resource)),
    sampler: samplerOf(options),
    spanLimits: { attributeValueLengthLimit: LONGEST_VALUE },
    spanProcessors: [processor],
  })
  // Not the global one, so that two apps in one process do not meet.
  const tracer = provider.getTracer('mecha-keys', options.version)
  const current = new AsyncLocalStorage<Span>()
  const tell = (work: Work, parent: Span | undefined) => parent?.isRecording() && record(tracer, work, trace.setSpan(ROOT_CONTEXT, parent))

  return {
    traceRequests: (app) => traceRequests(app, tracer, current),
    did: (work) => void tell(work, current.getStore()),
    begin() {
      const parent = current.getStore()
      return parent && ((work) => void tell(work, parent))
    },
    didAlone: (work) => record(tracer, work, ROOT_CONTEXT),
    logFields() {
      const span = current.getStore()
      return span ? { trace_id: span.spanContext().traceId } : {}
    },
    async stop(withinMs) {
      await Promise.race([provider.shutdown().catch(() => {}), sleep(withinMs, undefined, { ref: false })])
    },
  }
}

function traceRequests(app: FastifyInstance, tracer: Tracer, current: AsyncLocalStorage<Span>): void {
  app.decorateRequest('span', undefined)
  app.addHook('onRequest', (request, reply, done) => {
    if (NOT_TRACED.has(request.routeOptions.url ?? '')) return done()
    const span = (request.span = beginSpan(tracer, request))
    reply.raw.once('close', () => endSpan(span, reply))
    current.run(span, done)
  })
  // What waits for a body, or for the response to be sent, is called back by the connection, which knows of no request.
  app.addHook('preValidation', (request, _reply, done) => (request.span ? current.run(request.span, done) : done()))
  app.addHook('onResponse', (request, _reply, done) => (request.span ? current.run(request.span, done) : done()))
}

/** The route's pattern and not the path: a path can hold what somebody pasted into it, and a query as well. */
function beginSpan(tracer: Tracer, request: FastifyRequest): Span {
  const { url: route, config } = request.routeOptions
  const attributes = {
    'http.request.method': request.method,
    ...(route !== undefined && { 'http.route': route }),
    ...(config.plane && { 'mecha_keys.plane': config.plane }),
    'mecha_keys.request_id': request.id,
  }
  return tracer.startSpan(route === undefined ? request.method : `${request.method} ${route}`, { kind: SpanKind.SERVER, attributes }, contextOf(request))
}

/** The caller's trace. Its `tracestate` is left behind: that is text, and could hold anything. */
function contextOf({ headers }: FastifyRequest): Context {
  const { traceparent } = headers
  const parent: SpanContext | null = typeof traceparent === 'string' ? parseTraceParent(traceparent) : null
  return parent ? trace.setSpanContext(ROOT_CONTEXT, { ...parent, isRemote: true }) : ROOT_CONTEXT
}

function endSpan(span: Span, reply: FastifyReply): void {
  const { statusCode, refusal, raw } = reply
  if (raw.writableFinished) span.setAttribute('http.response.status_code', statusCode)
  else span.setAttribute('error.type', 'connection_closed')
  if (refusal) span.setAttribute('mecha_keys.code', refusal.code)
  if (raw.writableFinished && statusCode >= 500) span.setAttribute('error.type', refusal?.code ?? String(statusCode)).setStatus({ code: SpanStatusCode.ERROR })
  span.end()
}

/** A span of what has just ended. An error's text stays away: it can hold a row. */
function record(tracer: Tracer, { name, seconds, attributes = {}, isRemote = false, isFailure = false }: Work, parent: Context): void {
  const end = Date.now()
  const span = tracer.startSpan(name, { kind: isRemote ? SpanKind.CLIENT : SpanKind.INTERNAL, attributes, startTime: end - seconds * 1000 }, parent)
  if (isFailure) span.setStatus({ code: SpanStatusCode.ERROR })
  span.end(end)
}

function samplerOf({ sampler, ratio }: TracingOptions): Sampler {
  const root = sampler.endsWith('ratio') ? new TraceIdRatioBasedSampler(ratio) : sampler.endsWith('on') ? new AlwaysOnSampler() : new AlwaysOffSampler()
  return sampler.startsWith('parentbased_') ? new ParentBasedSampler({ root }) : root
}

/** The exporter, with word of whether it works. What cannot be sent is lost, and nobody waits for it. */
function watched({ url, headers, timeoutMs, compression, onExport }: TracingOptions): SpanExporter {
  const exporter = new OTLPTraceExporter({ url, headers: { ...headers }, timeoutMillis: timeoutMs, compression: compression as never })
  let isFailing = false
  return {
    export: (spans, done) =>
      exporter.export(spans, (result) => {
        const hasFailed = result.code !== ExportResultCode.SUCCESS
        if (hasFailed !== isFailing) onExport(hasFailed ? (result.error ?? new Error('no reason was given')) : undefined)
        isFailing = hasFailed
        done(result)
      }),
    shutdown: () => exporter.shutdown(),
    forceFlush: () => exporter.forceFlush(),
  }
}
