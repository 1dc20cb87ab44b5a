/** Traces: what they need is loaded only where they are sent, and the last ones are sent at the end. */

import { randomUUID } from 'node:crypto'
import type { FastifyInstance } from 'fastify'
import type { Settings } from '../config.js'
import { VERSION } from '../package-root.js'
import type { Tracing } from '../tracing/tracing.js'

/** Longest wait at the end for traces to be sent. */
const LAST_SPANS_MS = 2000
/** What is left of that when requests took all the time that a shutdown has. */
const LEAST_FOR_LAST_SPANS_MS = 250

/** @param onExport called when sending fails, and when it works again */
export async function openTracing(config: Settings, onExport: (error: Error | undefined) => void): Promise<Tracing> {
  const { startTracing } = await import('../tracing/opentelemetry.js')
  return startTracing({
    url: config.OTEL_EXPORTER_OTLP_TRACES_ENDPOINT ?? `${config.OTEL_EXPORTER_OTLP_ENDPOINT}/v1/traces`,
    headers: config.OTEL_EXPORTER_OTLP_HEADERS ?? {},
    compression: config.OTEL_EXPORTER_OTLP_COMPRESSION,
    timeoutMs: config.OTEL_EXPORTER_OTLP_TIMEOUT,
    resource: { 'service.name': 'mecha-keys', 'service.version': VERSION, 'service.instance.id': randomUUID(), ...config.OTEL_RESOURCE_ATTRIBUTES, ...(config.OTEL_SERVICE_NAME && { 'service.name': config.OTEL_SERVICE_NAME }) },
    sampler: config.OTEL_TRACES_SAMPLER,
    ratio: config.OTEL_TRACES_SAMPLER_ARG,
    queueSize: config.OTEL_BSP_MAX_QUEUE_SIZE,
    delayMs: config.OTEL_BSP_SCHEDULE_DELAY,
    version: VERSION,
    onExport,
  })
}

/** Sends the last spans after everything else has ended, within what is left of `SHUTDOWN_TIMEOUT`. */
export function stopTracingOnClose(app: FastifyInstance, tracing: Tracing, { SHUTDOWN_TIMEOUT }: Settings): void {
  let until = 0
  app.addHook('preClose', (done) => {
    until = performance.now() + SHUTDOWN_TIMEOUT * 1000
    done()
  })
  app.addHook('onClose', () => tracing.stop(Math.min(LAST_SPANS_MS, Math.max(until - performance.now(), LEAST_FOR_LAST_SPANS_MS))))
}
