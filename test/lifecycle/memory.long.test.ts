/** The first rule, in memory: what a heap snapshot and a core dump of the service hold after a whole life. */

import { randomBytes } from 'node:crypto'
import { once } from 'node:events'
import { readFileSync } from 'node:fs'
import { request, type IncomingMessage } from 'node:http'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { signOperatorToken } from '../../src/control/operators/builtin-issuer.js'
import { SCOPES } from '../../src/control/operators/scopes.js'
import { loadConfig } from '../../src/config.js'
import { PACKAGE_ROOT } from '../../src/package-root.js'
import { createDatabase } from '../helpers/database.js'
import { canReadMemory, findInMemory } from '../helpers/memory.js'
import { start } from '../helpers/process.js'
import { testEnvironment } from '../helpers/service.js'

/** Keys that are issued and used in every way. */
const KEYS = 20
/** Requests of others after that, none of which carries a secret: enough to fill V8's young generation, in which what is freed stays until then. */
const OTHERS = 6000
/** Most copies of each that may be left, in memory of either kind. */
const LEFT = 4

t.test('after a whole life and some others, no secret is reachable in the service, and argon2 was given none', { skip: !canReadMemory && 'only Linux shows the memory of a child' }, async (t) => {
  const { heap, places, keys, streaming, token } = await live(t)
  t.same([...keys, streaming, token].filter((text) => heap.includes(text)), [], 'in the heap snapshot')
  t.same(places.filter(({ text }) => text.includes('\n')), [], 'of what argon2 was given')
  // What is left of each key, which came and went nine times: bodies and headers in memory that was freed and is not used
  // again yet, and in the one buffer into which Node.js reads requests.
  const [v8, native] = [false, true].map((which) => places.filter(({ isNative }) => isNative === which).length) as [number, number]
  t.comment(`left of ${KEYS} keys, a token and two credentials: ${v8} copies in memory of V8, ${native} in the C library's`)
  t.ok(v8 <= LEFT * KEYS, `${v8} where V8 has collected`)
  t.ok(native <= LEFT * KEYS, `${native} where the C library has freed`)
})

/** Runs the service through the life of some keys, and looks at its memory when others have come after them. */
async function live(t: Test) {
  const database = await createDatabase(t)
  const environment = testEnvironment(database)
  const preload = join(PACKAGE_ROOT, 'dist', 'test', 'helpers', 'collect.js')
  const program = start(t, ['serve'], { env: { ...environment, PORT: '0', NODE_OPTIONS: `--import=${preload}` }, keepsInput: true })
  const [, url = ''] = await program.line(/listening at (http:\/\/[\d.:]+)/)
  const ask = async (order: string) => {
    program.say(order)
    await program.line(new RegExp(`done: ${order}\n`))
  }
  const token = await signOperatorToken(loadConfig(environment), { org: 'acme', scopes: SCOPES, subject: 'alice', ttlSeconds: 600 })
  const call = async (method: string, path: string, credential: string | undefined, body?: object | string, headers: Record<string, string> = {}) => {
    const type = typeof body === 'string' ? 'application/x-www-form-urlencoded' : 'application/json'
    const answer = await fetch(url + path, {
      method,
      headers: { ...(credential && { authorization: `Bearer ${credential}` }), ...(body && { 'content-type': type }), ...headers },
      ...(body && { body: typeof body === 'string' ? body : JSON.stringify(body) }),
    })
    const text = await answer.text()
    return { status: answer.status, body: text ? JSON.parse(text) : undefined }
  }
  const reveal = async (path: string, body: object) => (await call('POST', path, token, body)).body as { plaintext_key: string; key: { id: string } }

  const [{ plaintext_key: gateway }, { plaintext_key: streaming }] = await Promise.all([reveal('/v1/gateways', { name: 'edge' }), reveal('/v1/gateways', { name: 'streaming' })])
  const issued = await Promise.all(Array.from({ length: KEYS }, (_, i) => reveal('/v1/keys', { mecha: `m${i}^acmecorp` })))
  const keys = issued.map(({ plaintext_key }) => plaintext_key)
  const follow = request(`${url}/v1/changes`, { headers: { authorization: `Bearer ${streaming}` } }).end()
  t.teardown(() => follow.destroy())
  const [stream] = (await once(follow, 'response')) as [IncomingMessage]
  stream.on('error', () => {}).resume()

  const verify = async (key: string) => (await call('POST', '/v1/verify', gateway, { key })).body
  for (const key of keys) for (let i = 0; i < 3; i++) t.match(await verify(key), { valid: true })
  t.equal((await call('POST', '/v1/verify/batch', gateway, { keys: keys.map((key) => ({ key })) })).status, 200)
  for (const key of keys) t.equal((await call('GET', '/v1/authz', undefined, undefined, { 'x-mecha-key': key, 'x-gateway-authorization': `Bearer ${gateway}` })).status, 200)
  const exchange = 'grant_type=urn:ietf:params:oauth:grant-type:token-exchange&subject_token_type=urn:ietf:params:oauth:token-type:access_token&subject_token='
  for (const [i, { key: { id }, plaintext_key: key }] of issued.entries()) {
    if (i % 4 === 0) {
      t.equal((await call('POST', '/v1/token', undefined, exchange + key)).status, 200)
      t.match((await call('POST', '/v1/introspect', gateway, `token=${key}`)).body, { active: true })
      const nonce = { key_id: id, nonce: randomBytes(16).toString('hex'), expires_at: new Date(Date.now() + 60_000).toISOString() }
      t.equal((await call('POST', '/v1/nonces', gateway, nonce)).status, 201)
    } else if (i % 4 === 1) t.equal((await call('POST', `/v1/keys/${id}/revoke`, token, {})).status, 200)
    else if (i % 4 === 2) t.equal((await call('POST', '/v1/revoke-token', undefined, `token=${key}`)).status, 200)
    t.match(await verify(key), { valid: i % 4 === 0 || i % 4 === 3 })
    t.match(await verify(`${key.slice(0, -1)}${key.endsWith('0') ? '1' : '0'}`), { code: 'malformed' })
  }

  await Promise.all(Array.from({ length: 10 }, async () => {
    for (let i = 0; i < OTHERS / 10; i++) await (await fetch(`${url}/livez`)).text()
  }))
  await ask('collect')
  const secrets = [...keys, gateway, streaming].map(secretOf)
  const inputs = [...keys.map((key, i) => `m${i}^acmecorp\n${secretOf(key)}`), ...[gateway, streaming].map((key) => `gateway acme\n${secretOf(key)}`)]
  const places = findInMemory(program.pid, [...secrets, token, ...inputs])
  t.notOk(stream.closed, 'the stream is open')
  const file = join(t.testdir(), 'heap')
  await ask(`heap ${file}`)
  const heap = readFileSync(file, 'latin1')
  t.ok(heap.includes(environment.ROOT_SECRETS!), 'the search finds what has to be there')
  t.ok(findInMemory(program.pid, [environment.ROOT_SECRETS!]).length > 0, 'in the memory as well')
  return { heap, places, keys: keys.map(secretOf), streaming: secretOf(streaming), token }
}

/** The 43 secret characters. */
function secretOf(key: string): string {
  return key.slice(-60, -17)
}
