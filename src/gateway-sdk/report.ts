/** Calls what a gateway gave the SDK to be called. An error of it is told, and stops nothing else. */

export type Report = (error: unknown) => void

/** @param onError the gateway's own; a warning of the process without it, and when it throws itself */
export function createReport(onError: ((error: unknown) => void) | undefined): Report {
  return (error) => {
    try {
      if (onError) return onError(error)
    } catch (another) {
      warn(another)
    }
    warn(error)
  }
}

/** Calls a listener. What it throws, or rejects with later, is reported. */
export function callListener<T extends unknown[]>(report: Report, listener: (...args: T) => unknown, ...args: T): void {
  try {
    const result = listener(...args)
    if (result instanceof Promise) result.catch(report)
  } catch (error) {
    report(error)
  }
}

function warn(error: unknown): void {
  process.emitWarning(error instanceof Error ? error : String(error))
}
