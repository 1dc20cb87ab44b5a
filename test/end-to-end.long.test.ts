/** From an operator's hand to a closed socket: every part is a process of its own, with nginx between runtime and gateway. */

import { createHmac, randomUUID } from 'node:crypto'
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { signOperatorToken } from '../src/control/operators/builtin-issuer.js'
import { SCOPES } from '../src/control/operators/scopes.js'
import { loadConfig } from '../src/config.js'
import { PACKAGE_ROOT } from '../src/package-root.js'
import { createDatabase } from './helpers/database.js'
import { run, start, startCommand, type Running } from './helpers/process.js'
import { isInstalled } from './helpers/programs.js'
import { KEY_TO_THE_GATEWAY, startNginx } from './helpers/proxies.js'
import { testEnvironment } from './helpers/service.js'

/** `REVOCATION_MAX_STALENESS`, and that of the gateway, without a setting. */
const BOUND_MS = 10_000

t.test('a runtime acts through nginx and a gateway, until its key is revoked', { skip: !isInstalled('nginx') && 'nginx is not installed' }, async (t) => {
  const { service, operator, credential } = await startService(t)
  const sales = await issue(t, operator, 'sales^acmecorp')
  const buyer = await issue(t, operator, 'buyer^acmecorp')

  const gateway = await startGateway(t, { MECHA_KEYS_URL: service.url, GATEWAY_CREDENTIAL: credential })
  const proxy = await startNginx(t, { authz: service.url, upstream: gateway.url, gatewayCredential: credential, passesKey: true })
  const [seller, customer] = [startRuntime(t, sales.key, proxy), startRuntime(t, buyer.key, proxy)]
  await seller.line(/^connected as sales\^acmecorp$/m)
  await customer.line(/^connected as buyer\^acmecorp$/m)
  t.match((await run(t, ['list', '--json'], operator)).stdout, /"first_used_at": ?"\d{4}-/, 'the operator sees that it has arrived')

  seller.say('buyer^acmecorp the usual?')
  await customer.line(/^sales\^acmecorp: the usual\?$/m)
  await seller.line(/^sent to buyer\^acmecorp, who listens in 1 places$/m)
  customer.say('sales^acmecorp yes, please')
  await seller.line(/^buyer\^acmecorp: yes, please$/m)

  const message = signed(sales.key, { to: 'buyer^acmecorp', text: 'once' })
  t.equal(await post(proxy, message), 200, 'what this test signs passes')
  t.equal(await post(proxy, message), 401, 'and not a second time')
  t.equal(await post(proxy, { ...message, headers: { ...message.headers, 'x-nonce': randomUUID() } }), 401, 'nor with another nonce')
  t.equal(await post(proxy, signed(`${sales.key.slice(0, -1)}?`, { to: 'buyer^acmecorp', text: 'x' })), 401)

  const revoked = await run(t, ['revoke', sales.id, '--reason', 'end to end'], operator)
  const acknowledged = performance.now()
  t.equal(revoked.code, 0)
  await gateway.process.line(/^closed the inbox of sales\^acmecorp: revoked$/m)
  const { code, stderr } = await seller.ended()
  t.ok(performance.now() - acknowledged < BOUND_MS, `closed within the bound: ${Math.round(performance.now() - acknowledged)} ms`)
  t.equal(code, 1)
  t.match(stderr, /^disconnected \(revoked\); connecting again\nthe key is refused \(401\)/)
  for (const url of [proxy, gateway.url]) t.equal(await post(url, signed(sales.key, { to: 'buyer^acmecorp', text: 'x' })), 401, 'the next request')

  customer.say('buyer^acmecorp note to self')
  await customer.line(/^buyer\^acmecorp: note to self$/m)
  for (const one of [gateway.process, service.process, seller, customer])
    for (const secret of [sales.key, buyer.key, credential]) t.notOk((one.stdout() + one.stderr()).includes(secret), 'no plaintext is written by anybody')
})

t.test('a runtime connects again when its gateway is gone for a while, and ends with a word when it has no key', async (t) => {
  const { service, operator, credential } = await startService(t)
  const { key, id } = await issue(t, operator, 'sales^acmecorp')
  const first = await startGateway(t, { MECHA_KEYS_URL: service.url, GATEWAY_CREDENTIAL: credential })
  const runtime = startRuntime(t, key, first.url)
  await runtime.line(/^connected as sales\^acmecorp$/m)
  first.process.signal('SIGTERM')
  t.match(await first.process.ended(), { code: 0 }, 'a gateway ends in order')
  const second = await startGateway(t, { MECHA_KEYS_URL: service.url, GATEWAY_CREDENTIAL: credential, PORT: new URL(first.url).port })
  await runtime.line(/^connected as sales\^acmecorp\n[^]*^connected as sales\^acmecorp$/m)
  t.match(runtime.stderr(), /^disconnected \(closed\); connecting again$/m)

  // A key that was disabled and is good again; and one whose holder ended it.
  const update = (enabled: boolean) => fetch(`${service.url}/v1/keys/${id}`, { method: 'PATCH', headers: { authorization: `Bearer ${operator.env.OPERATOR_TOKEN}`, 'content-type': 'application/json' }, body: JSON.stringify({ enabled }) })
  t.equal((await update(true)).status, 200)
  t.equal((await fetch(`${service.url}/v1/revoke-token`, { method: 'POST', body: new URLSearchParams({ token: key }) })).status, 200)
  await second.process.line(/^closed the inbox of sales\^acmecorp: revoked$/m)
  t.match(await runtime.ended(), { code: 1, stderr: /the key is refused \(401\)/ })

  t.match(await startRuntime(t, undefined, second.url).ended(), { code: 78, stderr: /^MECHA_KEY is not set/ })
  t.match(await startRuntime(t, 'nonsense', second.url).ended(), { code: 1, stderr: /^the key is refused \(401\)/ })
  t.match(await startCommand(t, process.execPath, ['examples/gateway/gateway.js']).ended(), { code: 78, stderr: /^GATEWAY_CREDENTIAL is not set/ })
})

t.test('the commands of the example work as they stand', async (t) => {
  const readme = readFileSync(join(PACKAGE_ROOT, 'examples', 'gateway', 'README.md'), 'utf8')
  t.ok(readme.includes(`\n${KEY_TO_THE_GATEWAY.nginx}\n`), 'what nginx is told here is what the page says')
  const blocks = [...readme.matchAll(/```bash\n([^]*?)```/g)].map((match) => match[1]!)
  t.equal(blocks.length, 4)
  const { operator, credential } = await startService(t)
  // The same program without the second that npx takes to find it.
  const shell = (commands: string, env: Record<string, string> = {}) =>
    startCommand(t, 'bash', ['-c', `npx() { shift; ${process.execPath} dist/src/main.js "$@"; }\n${commands}`], { env: { ...operator.env, ...env }, keepsInput: true })
  const [gatewayLine, receiverLines, senderLines, operatorLine] = blocks as [string, string, string, string]
  const gateway = shell(gatewayLine, { GATEWAY_CREDENTIAL: credential, PORT: '0' })
  const [, GATEWAY_URL = ''] = await gateway.line(/^listening at (http:\/\/[\d.:]+)$/m)
  const [receiver, sender] = [shell(receiverLines, { GATEWAY_URL }), shell(senderLines, { GATEWAY_URL })]
  await Promise.all([receiver.line(/^connected as buyer\^acmecorp$/m), sender.line(/^connected as sales\^acmecorp$/m)])
  sender.say(/Type `([^`]+)`/.exec(readme)![1]!)
  await receiver.line(/^sales\^acmecorp: hello$/m)
  t.match(await shell(operatorLine).ended(), { code: 0, stdout: /^revoked key_\w+ at / })
  t.match(await sender.ended(), { code: 1, stderr: /the key is refused \(401\)/ })
})

/** The service in a process of its own, an operator who knows it, and a credential for a gateway. */
async function startService(t: Test) {
  const environment = testEnvironment(await createDatabase(t))
  const server = start(t, ['serve'], { env: { ...environment, PORT: '0' } })
  const [, url = ''] = await server.line(/listening at (http:\/\/[\d.:]+)/)
  const OPERATOR_TOKEN = await signOperatorToken(loadConfig(environment), { org: 'acme', scopes: SCOPES, subject: 'olivia', ttlSeconds: 600 })
  const { stdout } = await run(t, ['gateway', 'create', '--org', 'acme', '--name', 'example'], { env: environment })
  const credential = /^mgw_\w+$/m.exec(stdout)![0]
  return { service: { process: server, url }, operator: { env: { MECHA_KEYS_URL: url, OPERATOR_TOKEN } }, credential }
}

async function issue(t: Test, operator: { env: Record<string, string> }, mecha: string): Promise<{ key: string; id: string }> {
  const { stdout, stderr } = await run(t, ['issue', mecha], operator)
  return { key: stdout.trim(), id: stderr.trim() }
}

async function startGateway(t: Test, env: Record<string, string>): Promise<{ process: Running; url: string }> {
  const gateway = startCommand(t, process.execPath, ['examples/gateway/gateway.js'], { env: { PORT: '0', ...env } })
  const [, url = ''] = await gateway.line(/^listening at (http:\/\/[\d.:]+)$/m)
  return { process: gateway, url }
}

function startRuntime(t: Test, key: string | undefined, gateway: string): Running {
  return startCommand(t, process.execPath, ['examples/gateway/runtime.js'], { env: { ...(key !== undefined && { MECHA_KEY: key }), GATEWAY_URL: gateway }, keepsInput: true })
}

function signed(key: string, message: object) {
  const body = JSON.stringify(message)
  const [nonce, timestamp] = [randomUUID(), new Date().toISOString()]
  const signature = createHmac('sha256', key).update(`${body}|${nonce}|${timestamp}`).digest('base64')
  return { body, headers: { 'content-type': 'application/json', 'x-mecha-key': key, 'x-nonce': nonce, 'x-request-timestamp': timestamp, 'x-signature': signature } }
}

async function post(url: string, { body, headers }: ReturnType<typeof signed>): Promise<number> {
  const { status } = await fetch(`${url}/messages`, { method: 'POST', body, headers })
  return status
}
