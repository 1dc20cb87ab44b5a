/** argon2 behind a bounded queue: when it is full, more work is refused and never piled up. */

import { abandoned, overloaded } from '../errors.js'
import { hashSecret, hashSecretSync, isOutdated, nameOfPepper, verifySecret, verifySecretSync, type HashInput, type HashProfile, type Pepper } from '../key/hash.js'
import type { Root } from '../key/roots.js'

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
 * Longest that the event loop computes at a stretch, in milliseconds. A hash of the profile `high-entropy` is computed there: to hand it to
 * a thread would cost a third of what it takes itself (`docs/decisions/0001-hash-cost.md`).
 */
const STRETCH_MS = 1

/** Something to compute, when its turn comes. It does not reject. */
type Job = () => Promise<void>

/**
 * A hasher for one process. Its calls reject with `overloaded` (503) when the queue is full, and when their
 * caller leaves before their turn: what nobody waits for is not computed, and takes nobody's place.
 */
export function createHasher({ profile, version, queueSize, onDone, observe }: HasherParts) {
  // In the order of arrival, and anything can leave them: that is why they are sets.
  const forThreads = new Set<Job>()
  const forLoop = new Set<Job>()
  let running = 0

  function startThreads(): void {
    for (const job of forThreads) {
      if (running >= LANES) return
      forThreads.delete(job)
      running++
      void job().finally(() => {
        running--
        startThreads()
      })
    }
  }

  function computeStretch(): void {
    const end = performance.now() + STRETCH_MS
    for (const job of forLoop) {
      forLoop.delete(job)
      void job()
      if (performance.now() >= end) break
    }
    if (forLoop.size > 0) setImmediate(computeStretch)
  }

  function enqueue(job: Job, isBrief: boolean): void {
    if (!isBrief) {
      forThreads.add(job)
      startThreads()
    } else if (forLoop.add(job).size === 1) setImmediate(computeStretch)
  }

  const waiting = () => forThreads.size + forLoop.size

  function run<T>(operation: 'hash' | 'verify', isBrief: boolean, compute: () => T | Promise<T>, signal?: AbortSignal): Promise<T> {
    if (waiting() >= queueSize) throw overloaded()
    if (signal?.aborted) throw abandoned()
    const start = performance.now()
    const observed = observe?.(operation)
    return new Promise<T>((resolve, reject) => {
      const leave = () => {
        if (forThreads.delete(job) || forLoop.delete(job)) reject(abandoned())
      }
      const job = () => {
        signal?.removeEventListener('abort', leave)
        const begun = performance.now()
        const done = () => {
          const end = performance.now()
          onDone(operation, (end - start) / 1000)
          observed?.((begun - start) / 1000, (end - start) / 1000)
        }
        const result = (async () => compute())()
        resolve(result)
        return result.then(done, done)
      }
      signal?.addEventListener('abort', leave)
      enqueue(job, isBrief)
    })
  }

  return {
    profile,
    version,
    async hash(input: HashInput, root: Root): Promise<Hashed> {
      const pepper = { root, version: await version() }
      const isBrief = profile === 'high-entropy'
      const hash = await run('hash', isBrief, () => (isBrief ? hashSecretSync : hashSecret)(input, pepper, profile))
      return { hash, pepper_root: nameOfPepper(pepper) }
    },
    async verify(phc: string, input: HashInput, pepper: Pepper, signal?: AbortSignal): Promise<boolean> {
      // What it costs is told by the row, which may be of another profile or an earlier release.
      const isBrief = !isOutdated(phc, 'high-entropy')
      return run('verify', isBrief, () => (isBrief ? verifySecretSync : verifySecret)(phc, input, pepper), signal)
    },
    /** How many computations wait. */
    waiting,
  }
}
