import { setTimeout as sleep } from 'node:timers/promises'

/** Longest wait: a bound, and no expectation. */
const PATIENCE_MS = 30_000
/** Longest pause between two looks. Who looks all the time takes the core from what is waited for. */
const PAUSE_MS = 25

/** Resolves when something holds. Asks again and again, at first at once, so that nothing depends on how long it takes. */
export async function eventually(holds: () => Promise<boolean> | boolean): Promise<void> {
  const start = performance.now()
  while (!(await holds())) {
    const waited = performance.now() - start
    if (waited > PATIENCE_MS) throw new Error(`it never held: ${holds.toString()}`)
    await sleep(Math.min(PAUSE_MS, 1 + waited / 20))
  }
}
