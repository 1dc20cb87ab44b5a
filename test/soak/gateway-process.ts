/** A gateway with the SDK: for each key on standard input one line of what verify comes to. */

import { createInterface } from 'node:readline'
import { createVerifier, VerifierUnavailable } from '../../src/gateway-sdk/index.js'

const [url = '', credential = '', maxStalenessMs = ''] = process.argv.slice(2)
const verifier = createVerifier({ url, credential, maxStalenessMs: Number(maxStalenessMs), timeoutMs: 1000 })
for await (const key of createInterface({ input: process.stdin })) process.stdout.write(`${await outcome(key)}\n`)
await verifier.close()

async function outcome(key: string): Promise<string> {
  try {
    const verdict = await verifier.verify(key)
    return verdict.valid ? 'valid' : verdict.code
  } catch (error) {
    if (error instanceof VerifierUnavailable) return error.code
    throw error
  }
}
