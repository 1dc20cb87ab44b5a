/** An application behind a proxy: it tells what it was sent, and sends back what comes through an upgraded connection. */

import { createHash } from 'node:crypto'
import { once } from 'node:events'
import { createServer, type IncomingMessage } from 'node:http'
import type { AddressInfo } from 'node:net'
import { text } from 'node:stream/consumers'
import type { Test } from 'tap'
import { authenticateUpgrade, type Verifier } from '../../src/gateway-sdk/index.js'

/** A request as it arrived. */
export interface Arrived {
  readonly method: string
  readonly url: string
  /** In the order and the spelling in which they came, of names that came twice too. */
  readonly headers: readonly (readonly [name: string, value: string])[]
  readonly body: string
}

export interface Echo {
  readonly url: string
  /** Every request so far. */
  readonly arrived: readonly Arrived[]
}

/** @param verifier lets nobody upgrade without a good key, and ends the connection of one that is no longer good */
export async function startEcho(t: Pick<Test, 'teardown'>, verifier?: Verifier): Promise<Echo> {
  const arrived: Arrived[] = []
  const note = async (request: IncomingMessage, body: string) => {
    const { method, url, rawHeaders } = request
    const headers = rawHeaders.flatMap((name, i) => (i % 2 === 0 ? [[name, rawHeaders[i + 1]!] as const] : []))
    arrived.push({ method: method!, url: url!, headers, body })
    return arrived.at(-1)!
  }
  // What a proxy lets through is its affair.
  const server = createServer({ maxHeaderSize: 256 * 1024 }, async (request, response) => {
    response.setHeader('content-type', 'application/json').end(JSON.stringify(await note(request, await text(request))))
  })
  server.on('upgrade', async (request, socket) => {
    await note(request, '')
    if (verifier && !(await authenticateUpgrade(verifier, request, socket))) return
    // RFC 6455, section 1.3. Some proxies look at it.
    const accept = createHash('sha1').update(`${request.headers['sec-websocket-key']}258EAFA5-E914-47DA-95CA-C5AB0DC85B11`).digest('base64')
    socket.on('error', () => {}).write(`HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: ${accept}\r\n\r\n`)
    socket.pipe(socket)
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  t.teardown(() => {
    server.close()
    server.closeAllConnections()
  })
  return { url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`, arrived }
}
