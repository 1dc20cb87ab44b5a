/** The gateway SDK in front of a real service. */

import type { Test } from 'tap'
import { createVerifier, type Verdict, type Verifier, type VerifierOptions } from '../../src/gateway/index.js'
import type { TestDatabase } from './database.js'
import { eventually } from './eventually.js'
import { fresh, startService, type Service } from './service.js'

export interface Served {
  readonly service: Service
  readonly url: string
  /** A credential of `acme`. */
  readonly credential: string
}

/** A service that listens, whose feed is fresh. Its bound is short, and so are the times between its confirmations. */
export async function serve(t: Test, environment: Record<string, string> = {}, database?: TestDatabase): Promise<Served> {
  const service = await startService(t, { REVOCATION_MAX_STALENESS: '2s', ...environment }, database)
  const credential = await service.gateway()
  const url = await service.app.listen({ port: 0 })
  await fresh(service)
  return { service, url, credential }
}

/** Another replica of the same service. */
export async function replicaOf(t: Test, { service }: Served, environment: Record<string, string> = {}): Promise<{ service: Service; url: string }> {
  const replica = await startService(t, { REVOCATION_MAX_STALENESS: '2s', ROOT_SECRETS: service.config.ROOT_SECRETS!.join(), ...environment }, service.database)
  await fresh(replica)
  return { service: replica, url: await replica.app.listen({ port: 0 }) }
}

export function verifierFor(t: Test, { url, credential }: Pick<Served, 'url' | 'credential'>, options: Partial<VerifierOptions> = {}): Verifier {
  const verifier = createVerifier({ url, credential, ...options })
  t.teardown(() => verifier.close())
  return verifier
}

/** A `fetch` that sends verifies to one address and everything else to another, and counts both. */
export function splitFetch(verifyUrl: string, otherUrl: string) {
  const counts = { verify: 0, other: 0 }
  const split: typeof fetch = (input, init) => {
    const { pathname } = new URL(String(input as string))
    const isVerify = pathname === '/v1/verify'
    counts[isVerify ? 'verify' : 'other']++
    return fetch((isVerify ? verifyUrl : otherUrl) + pathname, init)
  }
  return { fetch: split, counts }
}

/** Resolves when the verifier answers for a key from memory. */
export async function held(verifier: Verifier, key: string): Promise<void> {
  await eventually(async () => isFromMemory(verifier, key))
}

/** Whether the verifier answers for a key from memory; if not, it asks. */
export async function isFromMemory(verifier: Verifier, key: string): Promise<boolean> {
  const verdict = verifier.verify(key)
  if (!(verdict instanceof Promise)) return true
  await verdict.catch(() => {})
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
