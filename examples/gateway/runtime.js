/**
 * A runtime: a process that acts as the Mecha whose key is in MECHA_KEY. It needs nothing of mecha-keys but the key.
 *
 * A line on standard input is sent: `buyer^acmecorp hello`. What arrives is written to standard output. It connects again
 * when it is cut off, and ends with 1 when its key is refused.
 */

import { createHmac, randomUUID } from 'node:crypto'
import { createInterface } from 'node:readline'
import { setTimeout as sleep } from 'node:timers/promises'
import WebSocket from 'ws'

const { MECHA_KEY = '', GATEWAY_URL = 'http://127.0.0.1:3000' } = process.env
/** As RFC 8959 writes it, a key has a scheme in front, which is not part of what signs. */
const KEY = MECHA_KEY.replace(/^secret-token:/, '')
// What this process starts in its turn need not have it.
delete process.env.MECHA_KEY

const TIMEOUT_MS = 10_000
/** The gateway asks every 30 seconds. */
const SILENCE_MS = 60_000
/** Between two attempts to connect, at first and at most. */
const PAUSE_MS = 250
const MAX_PAUSE_MS = 10_000
/** How often a message is sent before it is given up. */
const ATTEMPTS = 5

if (KEY === '') end(78, 'MECHA_KEY is not set: an operator issues one')
createInterface({ input: process.stdin }).on('line', (line) => {
  send(line).catch((error) => console.error(`not sent: ${error.message}`))
})
for (let failures = 0; ; failures++) {
  await receive(() => (failures = 0))
  // Not all runtimes at once, when a gateway starts anew.
  await sleep(Math.min(PAUSE_MS * 2 ** failures, MAX_PAUSE_MS) * (0.5 + Math.random() / 2))
}

/** Receives until the connection ends. */
function receive(onWelcome) {
  return new Promise((resolve) => {
    const inbox = new WebSocket(`${GATEWAY_URL.replace(/^http/, 'ws')}/inbox`, { headers: { 'X-Mecha-Key': KEY }, handshakeTimeout: TIMEOUT_MS, maxPayload: 1024 * 1024 })
    const silence = setTimeout(() => inbox.terminate(), SILENCE_MS)
    inbox.on('ping', () => silence.refresh())
    inbox.on('message', (data) => {
      const { welcome, from, text } = JSON.parse(data)
      console.log(welcome ? `connected as ${welcome}` : `${from}: ${text}`)
      if (welcome) onWelcome()
    })
    inbox.on('unexpected-response', (_request, { statusCode }) => {
      endIfRefused(statusCode)
      inbox.terminate()
    })
    // What it was is said by the end that follows it.
    inbox.on('error', () => {})
    inbox.on('close', (_code, reason) => {
      clearTimeout(silence)
      console.error(`disconnected${reason.length > 0 ? ` (${reason})` : ''}; connecting again`)
      resolve()
    })
  })
}

/** Sends `<Mecha> <text>`, signed anew each time, so that nobody else can. It arrives twice if only its answer was lost. */
async function send(line) {
  const [, to, text] = /^(\S+) (.+)$/.exec(line) ?? []
  if (!to) throw new Error('write <Mecha> <text>')
  const body = JSON.stringify({ to, text })
  for (let attempt = 1; ; attempt++) {
    const response = await fetch(`${GATEWAY_URL}/messages`, {
      method: 'POST',
      headers: { 'content-type': 'application/json', ...signed(body) },
      body,
      // A key goes where it was meant to go.
      redirect: 'error',
      signal: AbortSignal.timeout(TIMEOUT_MS),
    }).catch((error) => ({ status: 503, why: error.cause?.code ?? error.name }))
    endIfRefused(response.status)
    if (response.status === 200) return console.log(`sent to ${to}, who listens in ${(await response.json()).delivered} places`)
    if (response.status < 500 || attempt === ATTEMPTS) throw new Error(response.why ?? `the gateway answered ${response.status}`)
    await sleep(PAUSE_MS * 2 ** attempt)
  }
}

/** The platform's signed requests: HMAC-SHA-256 with the key over body, nonce and time. */
function signed(body) {
  const nonce = randomUUID()
  const timestamp = new Date().toISOString()
  const signature = createHmac('sha256', KEY).update(`${body}|${nonce}|${timestamp}`).digest('base64')
  return { 'X-Mecha-Key': KEY, 'X-Nonce': nonce, 'X-Request-Timestamp': timestamp, 'X-Signature': signature }
}

/** 503 is no refusal: nobody could say whether the key is good. */
function endIfRefused(status) {
  if (status === 401 || status === 403) end(1, `the key is refused (${status}): it was revoked, has expired or is not for this. Ask an operator for another one`)
}

function end(code, word) {
  console.error(word)
  process.exit(code)
}
