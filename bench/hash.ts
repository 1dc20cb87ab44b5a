/**
 * `npm run bench -- --only hash`: what argon2id costs by its memory, at one pass: computed on the event loop a millisecond at a stretch, and by
 * libuv's threads, sixteen at once, as `src/credentials/hash-queue.ts` does it. In time of a core, which other work on the machine changes little.
 */

import { hashSync, verify, verifySync } from '@node-rs/argon2'
import { monitorEventLoopDelay } from 'node:perf_hooks'

const MEMORY_KIB = [64, 128, 256, 512, 1024]
const STRETCH_MS = 1
const AT_ONCE = 16
/** As long as what the service gives it, and as peppered. */
const INPUT = 'x'.repeat(150)
const PEPPER = { secret: Buffer.alloc(32, 7) }

export async function measureHash(seconds: number): Promise<void> {
  process.stdout.write('| Memory | On the event loop, µs of a core | its delay, p99 | By threads, µs of a core | delay of the event loop, p99 |\n|---|---|---|---|---|\n')
  for (const memoryCost of MEMORY_KIB) {
    const phc = hashSync(INPUT, { memoryCost, timeCost: 1, parallelism: 1, algorithm: 2, ...PEPPER })
    const loop = await measure(seconds, (isOver) => onTheLoop(phc, isOver))
    const threads = await measure(seconds, (isOver) => byThreads(phc, isOver))
    process.stdout.write(`| ${memoryCost} KiB | ${loop.us.toFixed(0)} | ${loop.delayMs.toFixed(1)} ms | ${threads.us.toFixed(0)} | ${threads.delayMs.toFixed(1)} ms |\n`)
  }
}

/** Does a work until it is over; gives how often it was done. */
type Work = (isOver: () => boolean) => Promise<number>

async function measure(seconds: number, work: Work): Promise<{ us: number; delayMs: number }> {
  await work(overAfter(200))
  const delay = monitorEventLoopDelay({ resolution: 1 })
  delay.enable()
  const before = process.cpuUsage()
  const done = await work(overAfter(seconds * 1000))
  const { user, system } = process.cpuUsage(before)
  delay.disable()
  return { us: (user + system) / done, delayMs: delay.percentile(99) / 1e6 }
}

function overAfter(ms: number): () => boolean {
  const end = performance.now() + ms
  return () => performance.now() >= end
}

async function onTheLoop(phc: string, isOver: () => boolean): Promise<number> {
  let done = 0
  while (!isOver()) {
    for (const isStretchOver = overAfter(STRETCH_MS); !isStretchOver(); done++) verifySync(phc, INPUT, PEPPER)
    await new Promise((resolve) => setImmediate(resolve))
  }
  return done
}

async function byThreads(phc: string, isOver: () => boolean): Promise<number> {
  let done = 0
  await Promise.all(
    Array.from({ length: AT_ONCE }, async () => {
      for (; !isOver(); done++) await verify(phc, INPUT, PEPPER)
    }),
  )
  return done
}
