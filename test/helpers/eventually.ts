import { setTimeout as sleep } from 'node:timers/promises'

/** Longest wait: a bound, and no expectation. */
const PATIENCE_MS = 30_000
/** Between two looks. Who looks without a pause takes the core from what is waited for. */
const PAUSE_MS = 5

/** Resolves when something holds. Asks again and again, so that nothing depends on how long it takes. */
export async function eventually(holds: () => Promise<boolean> | boolean): Promise<void> {
  const end = performance.now() + PATIENCE_MS
  while (!(await holds())) {
    if (performance.now() > end) throw new Error(`it never held: ${holds.toString()}`)
    await sleep(PAUSE_MS)
  }
}
