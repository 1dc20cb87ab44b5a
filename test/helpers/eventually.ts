/** Longest wait: a bound, and no expectation. */
const PATIENCE_MS = 30_000

/** Resolves when something holds. Asks again and again, so that nothing depends on how long it takes. */
export async function eventually(holds: () => Promise<boolean> | boolean): Promise<void> {
  const end = performance.now() + PATIENCE_MS
  while (!(await holds())) {
    if (performance.now() > end) throw new Error(`it never held: ${holds.toString()}`)
    await new Promise((resolve) => setImmediate(resolve))
  }
}
