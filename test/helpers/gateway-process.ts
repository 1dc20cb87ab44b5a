/** A gateway as a process of its own: its answers, one line of JSON each, to keys on standard input. `heap FILE` writes its memory. */

import { createInterface } from 'node:readline'
import { writeHeapSnapshot } from 'node:v8'
import { createVerifier } from '../../src/gateway/index.js'
import { isFromMemory, outcome } from './gateway.js'

const [url = '', credential = '', maxStalenessMs = ''] = process.argv.slice(2)
const verifier = createVerifier({ url, credential, maxStalenessMs: Number(maxStalenessMs), timeoutMs: 1000 })
for await (const line of createInterface({ input: process.stdin })) {
  if (line.startsWith('heap ')) {
    writeHeapSnapshot(line.slice('heap '.length))
    process.stdout.write('{}\n')
    continue
  }
  const wasHeld = await isFromMemory(verifier, line)
  process.stdout.write(`${JSON.stringify({ outcome: await outcome(verifier, line), wasHeld, isFresh: verifier.isFresh() })}\n`)
}
await verifier.close()
