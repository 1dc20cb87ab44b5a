/** argon2 behind a bounded queue: when it is full, more work is refused and never piled up. */

import { abandoned, overloaded } from '../errors.js'
import { hashSecret, nameOfPepper, verifySecret, type HashInput, type HashProfile, type Pepper } from './hash.js'
import type { Root } from './roots.js'

export interface HasherParts {
  readonly profile: HashProfile
  /** Which version of argon2's input a new hash is to have. */
  readonly version: () => Promise<Pepper['version']>
  /** Most computations that wait. */
  readonly queueSize: number
  /** Called for each computation, with its seconds from the moment it was asked for. */
  readonly onDone: (operation: 'hash' | 'verify', seconds: number) => void
  /** Called when a computation is asked for; what it returns is called when that is done, with how long it waited for its turn, and took in all. */
  readonly observe?: ((operation: 'hash' | 'verify') => ((waited: number, seconds: number) => void) | undefined) | undefined
}

/** A new hash, and what `keys` has to say of how it was made. */
export interface Hashed {
  readonly hash: string
  readonly pepper_root: string
}

export type Hasher = ReturnType<typeof createHasher>

/**
 * Computations handed to libuv at once. It has four threads for them; a thread that finds the next one waiting need not
 * be woken for it, which took longer than to compute it (`docs/performance.md`). What has been handed over cannot be
 * taken back when its caller leaves, so it is not many.
 */
const LANES = 16

/**
 * A hasher for one process. Its calls reject with `overloaded` (503) when the queue is full, and when their
 * caller leaves before their turn: what nobody waits for is not computed, and takes nobody's place.
 */
export function createHasher({ profile, version, queueSize, onDone, observe }: HasherParts) {
  // In the order of arrival, and anything can leave it: that is why it is a set.
  const waiting = new Set<() => Promise<void>>()
  let running = 0

  function runNext(): void {
    for (const job of waiting) {
      if (running >= LANES) return
      waiting.delete(job)
      running++
      void job().finally(() => {
        running--
        runNext()
      })
    }
  }

  function run<T>(operation: 'hash' | 'verify', compute: () => Promise<T>, signal?: AbortSignal): Promise<T> {
    if (waiting.size >= queueSize) throw overloaded()
    if (signal?.aborted) throw abandoned()
    const start = performance.now()
    const observed = observe?.(operation)
    return new Promise<T>((resolve, reject) => {
      const leave = () => {
        if (waiting.delete(job)) reject(abandoned())
      }
      const job = async () => {
        signal?.removeEventListener('abort', leave)
        const begun = performance.now()
        await compute().then(resolve, reject)
        const end = performance.now()
        onDone(operation, (end - start) / 1000)
        observed?.((begun - start) / 1000, (end - start) / 1000)
      }
      signal?.addEventListener('abort', leave)
      waiting.add(job)
      runNext()
    })
  }

  return {
    profile,
    version,
    async hash(input: HashInput, root: Root): Promise<Hashed> {
      const pepper = { root, version: await version() }
      return { hash: await run('hash', () => hashSecret(input, pepper, profile)), pepper_root: nameOfPepper(pepper) }
    },
    verify: async (phc: string, input: HashInput, pepper: Pepper, signal?: AbortSignal) => run('verify', () => verifySecret(phc, input, pepper), signal),
    /** How many computations wait. */
    waiting: () => waiting.size,
  }
}
