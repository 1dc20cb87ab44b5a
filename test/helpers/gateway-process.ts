/**
 * A gateway as a process of its own: its answers, one line of JSON each, to keys on standard input. `heap FILE` writes its
 * memory, and `listen` starts a server for requests and upgrades.
 */

import { once } from 'node:events'
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { createInterface } from 'node:readline'
import { writeHeapSnapshot } from 'node:v8'
import { authenticateRequest, authenticateUpgrade, createVerifier } from '../../src/gateway-sdk/index.js'
import { isFromMemory, outcome } from './verdicts.js'

const [url = '', credential = '', maxStalenessMs = ''] = process.argv.slice(2)
const verifier = createVerifier({ url, credential, maxStalenessMs: Number(maxStalenessMs), timeoutMs: 1000 })
const server = createServer(async (request, response) => {
  const identity = await authenticateRequest(verifier, request, response)
  if (identity) response.end(identity.key_id)
})
server.on('upgrade', async (request, socket) => {
  const identity = await authenticateUpgrade(verifier, request, socket)
  // Connections of a server may be half open: who hangs up says so first.
  socket.on('end', () => socket.end())
  if (identity) socket.resume().write('HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: test\r\n\r\n')
})
const answer = (line: object) => process.stdout.write(`${JSON.stringify(line)}\n`)
for await (const line of createInterface({ input: process.stdin })) {
  if (line.startsWith('heap ')) {
    writeHeapSnapshot(line.slice('heap '.length))
    answer({})
  } else if (line === 'listen') {
    await once(server.listen(0, '127.0.0.1'), 'listening')
    answer({ port: (server.address() as AddressInfo).port })
  } else if (line === 'state') {
    answer(verifier.state())
  } else {
    const wasHeld = await isFromMemory(verifier, line)
    answer({ outcome: await outcome(verifier, line), wasHeld, isFresh: verifier.isFresh() })
  }
}
await verifier.close()
