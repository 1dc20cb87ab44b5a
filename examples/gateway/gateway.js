/**
 * A small gateway: a runtime sends over REST and receives over a WebSocket, as the Mecha whose key it holds.
 *
 *   POST /messages  {"to": "buyer^acmecorp", "text": "hello"}   signed with the key; answers {"delivered": 1}
 *   GET  /inbox     a WebSocket, on which arrives what is sent to the Mecha
 *
 * Who a runtime is, the gateway SDK says: from memory, and kept true by the service's stream of changes. When a key is
 * revoked, the SDK closes what it opened.
 */

import { createServer } from 'node:http'
import { authenticateSignedRequest, authenticateUpgrade, createVerifier } from 'mecha-keys/gateway'
import { WebSocketServer } from 'ws'

const { HOST = '127.0.0.1', PORT = '3000', MECHA_KEYS_URL = 'http://127.0.0.1:8080', GATEWAY_CREDENTIAL = '' } = process.env

/** Bytes of a message, and most that waits for a runtime that does not read. */
const MAX_MESSAGE = 64 * 1024
const MAX_BACKLOG = 1024 * 1024
/** How often a runtime is asked whether it is still there. */
const PING_MS = 30_000
/** Close codes of our own (RFC 6455, section 7.4.2), and the registered one for "try again later". */
const KEY_IS_OVER = 4401
const TRY_AGAIN = 1013

if (GATEWAY_CREDENTIAL === '') {
  console.error('GATEWAY_CREDENTIAL is not set: mecha-keys gateway create makes one')
  process.exit(78)
}

const verifier = createVerifier({
  url: MECHA_KEYS_URL,
  credential: GATEWAY_CREDENTIAL,
  onStreamLost: (error) => console.error(`the stream of changes was lost (${error.message}); connecting again`),
})
/** Open WebSockets, by organization and Mecha. */
const inboxes = new Map()
const upgrades = new WebSocketServer({ noServer: true, maxPayload: MAX_MESSAGE })
const server = createServer((request, response) => {
  route(request, response).catch((error) => {
    console.error(`a request failed: ${error.message}`)
    response.destroy()
  })
})
server.on('upgrade', (request, socket, head) => {
  openInbox(request, socket, head).catch((error) => {
    console.error(`an upgrade failed: ${error.message}`)
    socket.destroy()
  })
})

async function route(request, response) {
  if (request.method !== 'POST' || request.url !== '/messages') return answer(response, 404, { title: 'Nothing is here' })
  const signed = await authenticateSignedRequest(verifier, request, response, { maxBodyBytes: MAX_MESSAGE })
  if (!signed) return
  const { identity, body } = signed
  const message = messageIn(body)
  if (!message) return answer(response, 400, { title: 'Send {"to": "name^crew", "text": "…"}' })
  answer(response, 200, { delivered: deliver(identity, message) })
}

/** To every open inbox of that Mecha of the sender's organization; nothing is kept for one that is not there. */
function deliver({ org_id, mecha }, { to, text }) {
  const open = inboxes.get(addressOf(org_id, to)) ?? []
  for (const inbox of open) {
    if (inbox.bufferedAmount > MAX_BACKLOG) inbox.terminate()
    else inbox.send(JSON.stringify({ from: mecha.handle, text }))
  }
  return open.size ?? 0
}

async function openInbox(request, socket, head) {
  if (request.url !== '/inbox') return socket.end('HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n')
  let inbox
  const identity = await authenticateUpgrade(verifier, request, socket, {
    onEnd(reason) {
      console.log(`closed the inbox of ${identity.mecha.handle}: ${reason}`)
      inbox?.close(reason === 'stale' || reason === 'closed' ? TRY_AGAIN : KEY_IS_OVER, reason)
    },
  })
  if (!identity) return
  upgrades.handleUpgrade(request, socket, head, (opened) => {
    inbox = opened
    const address = addressOf(identity.org_id, identity.mecha.handle)
    inboxes.set(address, (inboxes.get(address) ?? new Set()).add(inbox))
    inbox.on('error', () => inbox.terminate())
    inbox.on('message', () => inbox.close(1003, 'send with POST /messages'))
    inbox.on('close', () => {
      inboxes.get(address).delete(inbox)
      if (inboxes.get(address).size === 0) inboxes.delete(address)
    })
    inbox.on('pong', () => (inbox.isThere = true))
    inbox.isThere = true
    inbox.send(JSON.stringify({ welcome: identity.mecha.handle }))
  })
}

function addressOf(orgId, handle) {
  return JSON.stringify([orgId, handle])
}

function messageIn(body) {
  try {
    const { to, text } = JSON.parse(body)
    return typeof to === 'string' && typeof text === 'string' ? { to, text } : undefined
  } catch {
    return undefined
  }
}

function answer(response, status, body) {
  response.writeHead(status, { 'content-type': status < 400 ? 'application/json' : 'application/problem+json' }).end(JSON.stringify(status < 400 ? body : { status, ...body }))
}

/** Who has not answered the last ping is gone. */
const pings = setInterval(() => {
  for (const inbox of [...inboxes.values()].flatMap((open) => [...open])) {
    if (!inbox.isThere) inbox.terminate()
    inbox.isThere = false
    inbox.ping()
  }
}, PING_MS)

for (const signal of ['SIGINT', 'SIGTERM'])
  process.once(signal, async () => {
    clearInterval(pings)
    server.close()
    // Its inboxes are told to try again, and closed.
    await verifier.close()
    server.closeIdleConnections()
  })

server.listen(Number(PORT), HOST, () => console.log(`listening at http://${HOST}:${server.address().port}`))
