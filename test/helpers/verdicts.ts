/** What a gateway's verifier says of a key, and whether from memory. Imports no test framework: a gateway's own process uses it too. */

import type { Verdict, Verifier } from '../../src/gateway-sdk/index.js'

/** Whether the verifier answers for a key from memory; if not, it asks. */
export async function isFromMemory(verifier: Verifier, key: string): Promise<boolean> {
  const verdict = verifier.verify(key)
  if (!(verdict instanceof Promise)) return true
  await verdict.catch(() => {})
  return false
}

/** The same without waiting for what is asked. */
export function isHeld(verifier: Verifier, key: string): boolean {
  const verdict = verifier.verify(key)
  if (!(verdict instanceof Promise)) return true
  verdict.catch(() => {})
  return false
}

/** What verify comes to: a verdict's code, `valid`, or the code of what it is unavailable for. */
export async function outcome(verifier: Verifier, key: string): Promise<string> {
  try {
    const verdict: Verdict = await verifier.verify(key)
    return verdict.valid ? 'valid' : verdict.code
  } catch (error) {
    return (error as { code: string }).code
  }
}
