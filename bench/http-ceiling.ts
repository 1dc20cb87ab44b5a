/**
 * The limit of one core with Node.js's own HTTP: a bare `node:http` server that reads a body, parses it, looks at one field and answers as verify
 * does. Prints its address and serves until it is killed.
 */

import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'

const valid = JSON.stringify({
  valid: true, key_id: 'key_01jd9p5v3fe8rr2k7m4q9wx0zt', mecha: { handle: 'sales^acmecorp', name: 'sales', crew: 'acmecorp' },
  org_id: 'acmecorp', scopes: [], metadata: {}, expires_at: null,
})
const refused = JSON.stringify({ valid: false, code: 'malformed' })

const server = createServer((request, response) => {
  let body = ''
  request.setEncoding('utf8')
  request.on('data', (chunk: string) => (body += chunk))
  request.on('end', () => {
    const { key } = JSON.parse(body) as { key: unknown }
    const answer = typeof key === 'string' ? valid : refused
    response.writeHead(200, { 'content-type': 'application/json; charset=utf-8', 'content-length': answer.length })
    response.end(answer)
  })
})
server.listen(0, '127.0.0.1', () => process.stdout.write(`http://127.0.0.1:${(server.address() as AddressInfo).port}\n`))
