/**
 * A gateway that verifies with the SDK, in a process of its own: keys in turn, all of them held, as often as it can. Reads
 * an order on standard input and writes how often per second.
 */

import { text } from 'node:stream/consumers'
import { createVerifier } from '../src/gateway-sdk/index.js'

export interface GatewayOrder {
  readonly url: string
  readonly credential: string
  readonly keys: readonly string[]
  readonly seconds: number
}

/** Verifies between two turns of the event loop, in which the stream is read. */
const TURN = 1000

const { url, credential, keys, seconds } = JSON.parse(await text(process.stdin)) as GatewayOrder
const verifier = createVerifier({ url, credential })
for (let isHeld = false; !isHeld; ) {
  const asked = keys.map((key) => verifier.verify(key)).filter((verdict) => verdict instanceof Promise)
  isHeld = asked.length === 0
  await Promise.all(asked)
}
let done = 0
let asked = 0
const start = performance.now()
const end = start + seconds * 1000
while (performance.now() < end) {
  for (let i = 0; i < TURN; i++) {
    const verdict = verifier.verify(keys[done++ % keys.length]!, { scopes: [] })
    if (verdict instanceof Promise) {
      asked++
      await verdict
    } else if (!verdict.valid) throw new Error(verdict.code)
  }
  await new Promise((resolve) => setImmediate(resolve))
}
process.stdout.write(`${JSON.stringify({ rate: done / ((performance.now() - start) / 1000), asked })}\n`)
await verifier.close()
