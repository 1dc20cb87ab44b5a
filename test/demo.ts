/**
 * `npm run demo`: the life of a key over real HTTP, on a throw-away database, as a person would want to read it.
 * Exits with 1 when any step is not as it should be.
 */

import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { PACKAGE_ROOT } from '../src/package-root.js'

const START_TIMEOUT_MS = 90_000
const STEP_TIMEOUT_MS = 10_000

const dataDir = mkdtempSync(join(tmpdir(), 'mecha-keys-demo-'))
const service = spawn(process.execPath, [join(PACKAGE_ROOT, 'dist', 'src', 'main.js'), 'serve'], {
  env: { PATH: process.env['PATH'], DATA_DIR: dataDir, PORT: '0', LOG_LEVEL: 'warn' },
  stdio: ['ignore', 'pipe', 'inherit'],
})
let wrong = 0
try {
  say('Starting the service on a throw-away PostgreSQL …')
  await live(await readExports())
} catch (error) {
  wrong++
  say(`✗ ${error instanceof Error ? error.message : String(error)}`)
} finally {
  service.kill('SIGTERM')
  if (service.exitCode === null) await once(service, 'exit')
  rmSync(dataDir, { recursive: true, force: true })
}
say(wrong === 0 ? '\nEverything is as it should be.' : `\n${wrong} of the steps went wrong.`)
process.exit(wrong === 0 ? 0 : 1)

interface Exports {
  readonly MECHA_KEYS_URL: string
  readonly OPERATOR_TOKEN: string
  readonly GATEWAY_CREDENTIAL: string
}

/** The three values that the service prints for whoever starts it. */
async function readExports(): Promise<Exports> {
  const found: Record<string, string> = {}
  const timeout = setTimeout(() => service.kill('SIGKILL'), START_TIMEOUT_MS)
  for await (const line of createInterface(service.stdout)) {
    const [, name, value] = /^export (\w+)=(\S+)$/.exec(line) ?? []
    if (name) found[name] = value!
    if (found['GATEWAY_CREDENTIAL']) break
  }
  clearTimeout(timeout)
  service.stdout.resume()
  if (!found['GATEWAY_CREDENTIAL']) throw new Error('the service did not start')
  return found as unknown as Exports
}

async function live({ MECHA_KEYS_URL: URL, OPERATOR_TOKEN, GATEWAY_CREDENTIAL }: Exports): Promise<void> {
  const asOperator = (method: string, path: string, body?: object) => send(method, URL + path, OPERATOR_TOKEN, body)
  const verify = (key: string) => send('POST', `${URL}/v1/verify`, GATEWAY_CREDENTIAL, { key })

  say(`The service is at ${URL}.\n`)
  say('1. The operator issues a key for sales^acmecorp.')
  const issued = await asOperator('POST', '/v1/keys', { mecha: 'sales^acmecorp', name: 'demo', scopes: ['orders:read'] })
  const first = issued.body.plaintext_key
  check('it is revealed, this once', issued.status === 201 && typeof first === 'string', mask(first))

  say('2. The operator lists what is known of it.')
  const listed = await asOperator('GET', '/v1/keys?mecha=sales%5Eacmecorp')
  const [entry] = listed.body.keys
  check('its metadata is there', entry?.id === issued.body.key.id && entry?.status === 'active', `${entry?.id} ${entry?.status}`)
  check('the key itself is not', !JSON.stringify(listed.body).includes(first), 'no plaintext in the answer')

  say('3. A gateway verifies it.')
  const valid = (await verify(first)).body
  check('it is valid', valid.valid === true, `${valid.mecha?.handle} of ${valid.org_id}, scopes ${valid.scopes?.join(' ')}`)

  say('4. The operator rotates it, with an overlap of an hour.')
  const rotated = await asOperator('POST', `/v1/keys/${entry.id}/rotate`, { overlap_seconds: 3600 })
  const second = rotated.body.plaintext_key
  check('a successor is revealed', rotated.status === 201 && second !== first, mask(second))

  say('5. The gateway verifies both.')
  check('the old one is valid until the overlap ends', (await verify(first)).body.valid === true, 'valid')
  check('the new one is valid', (await verify(second)).body.valid === true, 'valid')

  say('6. The operator revokes the successor.')
  const revoked = await asOperator('POST', `/v1/keys/${rotated.body.key.id}/revoke`, { reason: 'end of the demo' })
  check('it is revoked, for good', revoked.body.status === 'revoked', `at ${revoked.body.revoked_at}: ${revoked.body.revoke_reason}`)

  say('7. The gateway verifies it again.')
  const refused = (await verify(second)).body
  check('it is refused', refused.valid === false && refused.code === 'revoked', `code ${refused.code}`)
}

async function send(method: string, url: string, token: string, body?: object): Promise<{ status: number; body: any }> {
  const response = await fetch(url, {
    method,
    headers: { authorization: `Bearer ${token}`, ...(body && { 'content-type': 'application/json' }) },
    ...(body && { body: JSON.stringify(body) }),
    signal: AbortSignal.timeout(STEP_TIMEOUT_MS),
  })
  return { status: response.status, body: await response.json() }
}

function check(what: string, right: boolean, shown: string): void {
  if (!right) wrong++
  say(`   ${right ? '✓' : '✗'} ${what}: ${shown}`)
}

/** Enough of a key to recognise it, and none of its secret. */
function mask(key: unknown): string {
  return typeof key === 'string' ? `${key.slice(0, key.lastIndexOf('_'))}_…` : 'nothing'
}

function say(line: string): void {
  process.stdout.write(`${line}\n`)
}
