/** How the process ends: by a signal, or after an error that nobody caught, and within a bound in any case. */

import { getActiveResourcesInfo } from 'node:process'
import type { FastifyBaseLogger } from 'fastify'

export interface ShutdownDeps {
  readonly log: FastifyBaseLogger
  /** Longest time from the first signal to the end. */
  readonly withinMs: number
  /** Lets go of everything. */
  readonly finish: (why: { readonly isError: boolean }) => Promise<void>
}

/** Signals that would end a process that does not listen to them, and are sent for other reasons. */
const HARMLESS = ['SIGHUP', 'SIGUSR2'] as const
/** How soon SIGINT comes again when Ctrl-C was pressed once: from the terminal, and from npm, which passes it on. */
const SAME_KEY_MS = 500

/** SIGTERM and SIGINT end the process when everything is finished, a second one ends it at once. */
export function endOnSignals({ log, withinMs, finish }: ShutdownDeps): void {
  let begunAt: number | undefined
  for (const signal of ['SIGTERM', 'SIGINT'] as const) process.on(signal, () => onSignal(signal))
  for (const signal of HARMLESS) process.on(signal, () => log.info({ signal }, 'the signal changes nothing'))
  for (const event of ['uncaughtException', 'unhandledRejection'] as const) process.on(event, onError)

  function onSignal(signal: NodeJS.Signals): void {
    if (begunAt === undefined) {
      log.info({ signal }, 'draining')
      begin(signal)
    } else if (signal !== 'SIGINT' || performance.now() - begunAt > SAME_KEY_MS) {
      log.error({ signal }, 'a second signal: ending at once')
      exit(1, signal)
    }
  }

  function onError(err: unknown): void {
    log.fatal({ err }, 'ending after an error that nobody caught')
    if (begunAt === undefined) begin()
    else exit(1)
  }

  function begin(signal?: NodeJS.Signals): void {
    begunAt = performance.now()
    setTimeout(() => {
      log.error('ending unfinished: it took too long')
      exit(1, signal)
    }, withinMs)
    finish({ isError: signal === undefined }).then(
      () => exit(signal ? 0 : 1, signal),
      (err: unknown) => {
        log.error({ err }, 'ending unfinished')
        exit(1, signal)
      },
    )
  }
}

/**
 * `process.exit` waits for every look-up of a name, those that have not begun included, and nothing can interrupt one: with
 * a name server that does not answer that takes minutes. What a signal kills waits for nothing.
 */
function exit(code: number, signal: NodeJS.Signals = 'SIGKILL'): void {
  if (getActiveResourcesInfo().includes('GetAddrInfoReqWrap')) {
    // The log writes its last lines now.
    process.emit('exit', code)
    process.removeAllListeners(signal)
    process.kill(process.pid, signal)
    // The first process of a container cannot be killed from inside. Newer versions of Node.js can replace it by one that ends.
    const { execve } = process as { execve?: (file: string, args: string[], env: object) => void }
    execve?.(process.execPath, [process.execPath, '-e', `process.exit(${code})`], {})
  }
  process.exit(code)
}
