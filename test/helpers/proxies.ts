/** Real proxies with the configurations of `examples/proxies/`, in which nothing is replaced but addresses and paths. */

import { appendFileSync, mkdirSync, readFileSync, renameSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import type { Test } from 'tap'
import { freePort } from '../../src/db/embedded/free-port.js'
import { PACKAGE_ROOT } from '../../src/package-root.js'
import { eventually } from './eventually.js'
import { runProgram, temporaryFolder } from './programs.js'

export interface ProxyOptions {
  /** Of mecha-keys, or of its `AUTHZ_LISTEN`: `http://127.0.0.1:8080`. */
  readonly authz: string
  /** Of the application behind the proxy: `http://127.0.0.1:3000`. */
  readonly upstream: string
  /** What the proxy shows mecha-keys; nothing for `AUTHZ_LISTEN`. */
  readonly gatewayCredential?: string
  /** What is asked for beside a good key: `scope=orders:read`. */
  readonly demand?: string
  /** Whether the upstream is a gateway itself, which the key passes to, as `examples/proxies/README.md` says for each. */
  readonly passesKey?: boolean
  /** Longest life of a WebSocket, for Envoy and Caddy: `1s`. */
  readonly longestLife?: string
}

type Parent = Pick<Test, 'teardown'>

/** What lets the key through to the upstream: in the place of another line, or beside one; for Traefik and Envoy it is a line that goes. */
export const KEY_TO_THE_GATEWAY = {
  nginx: 'proxy_set_header X-Mecha-Key $http_x_mecha_key;',
  caddy: 'header_up X-Mecha-Key {vars.mecha_key}',
  haproxy: 'http-request set-header X-Mecha-Key %[var(txn.mecha_key)]',
  traefik: "X-Mecha-Key: ''",
  envoy: 'request_headers_to_remove: [x-mecha-key]',
}

/** Starts nginx with `examples/proxies/nginx.conf`, and resolves to its URL when it listens. It ends with the test. */
export async function startNginx(t: Parent, { authz, upstream, gatewayCredential, demand, passesKey }: ProxyOptions): Promise<string> {
  const folder = temporaryFolder(t)
  const port = await freePort()
  const credential = join(folder, 'credential')
  writeFileSync(credential, gatewayCredential ? `proxy_set_header X-Gateway-Authorization "Bearer ${gatewayCredential}";\n` : '', { mode: 0o600 })
  const example = writeExample(folder, 'nginx.conf', {
    '127.0.0.1:8080': hostOf(authz),
    '127.0.0.1:3000': hostOf(upstream),
    'listen 8000;': `listen 127.0.0.1:${port};`,
    '/etc/nginx/mecha-keys.credential': credential,
    ...(demand && { '/v1/authz;': `/v1/authz?${demand};` }),
    ...(passesKey && { "proxy_set_header X-Mecha-Key '';": KEY_TO_THE_GATEWAY.nginx }),
  })
  // As little as nginx needs around it, and nowhere but in this folder.
  const temporary = ['client_body', 'proxy', 'fastcgi', 'uwsgi', 'scgi'].map((name) => `${name}_temp_path ${folder}/${name};`)
  const main = join(folder, 'main.conf')
  writeFileSync(main, `${process.getuid?.() === 0 ? 'user root;' : ''} worker_processes 1; daemon off; pid ${folder}/pid; error_log stderr warn;
    events {} http { access_log off; ${temporary.join(' ')} include ${example}; }`)
  await runProgram(t, 'nginx', ['-e', 'stderr', '-p', folder, '-c', main], port)
  return `http://127.0.0.1:${port}`
}

/** Starts Caddy with `examples/proxies/Caddyfile`, as {@link startNginx} does nginx. */
export async function startCaddy(t: Parent, { authz, upstream, gatewayCredential, demand, passesKey, longestLife }: ProxyOptions): Promise<string> {
  const folder = temporaryFolder(t)
  const port = await freePort()
  const example = writeExample(folder, 'Caddyfile', {
    ...(passesKey && { 'reverse_proxy 127.0.0.1:3000 {': `reverse_proxy ${hostOf(upstream)} {\n${KEY_TO_THE_GATEWAY.caddy}` }),
    '127.0.0.1:8080': hostOf(authz),
    '127.0.0.1:3000': hostOf(upstream),
    ...(demand && { 'uri /v1/authz?\n': `uri /v1/authz?${demand}\n` }),
    ...(longestLife && { '# stream_timeout 1h': `stream_timeout ${longestLife}` }),
    '\n:8000 {': `\nhttp://127.0.0.1:${port} {`,
    ...(!gatewayCredential && { 'header_up X-Gateway-Authorization "asked:Bearer {env.GATEWAY_CREDENTIAL}"': '' }),
  })
  // The port of its administration is one for the whole machine.
  const main = join(folder, 'main')
  writeFileSync(main, `{\n  admin off\n  auto_https off\n}\nimport ${example}\n`)
  const env = { HOME: folder, XDG_CONFIG_HOME: folder, XDG_DATA_HOME: folder, ...(gatewayCredential && { GATEWAY_CREDENTIAL: gatewayCredential }) }
  await runProgram(t, 'caddy', ['run', '--config', main, '--adapter', 'caddyfile'], port, env)
  return `http://127.0.0.1:${port}`
}

/** Starts HAProxy with `examples/proxies/haproxy.cfg` and its script, as {@link startNginx} does nginx. */
export async function startHaproxy(t: Parent, { authz, upstream, gatewayCredential, demand, passesKey }: ProxyOptions): Promise<string> {
  const folder = temporaryFolder(t)
  const port = await freePort()
  const credential = join(folder, 'credential')
  writeFileSync(credential, `${gatewayCredential}\n`, { mode: 0o600 })
  const example = writeExample(folder, 'haproxy.cfg', {
    '/etc/haproxy/mecha-authz.lua': writeExample(folder, 'mecha-authz.lua', {}),
    'setenv MECHA_KEYS_CREDENTIAL_FILE /etc/haproxy/mecha-keys.credential': gatewayCredential ? `setenv MECHA_KEYS_CREDENTIAL_FILE ${credential}` : '',
    '127.0.0.1:8080': hostOf(authz),
    '127.0.0.1:3000': hostOf(upstream),
    ...(demand && { '# http-request set-var(txn.mecha_demand) str("scope=orders:read&mecha=sales%5Eacmecorp")': `http-request set-var(txn.mecha_demand) str("${demand}")` }),
    ...(passesKey && { '  http-request set-header X-Mecha-Id': `${KEY_TO_THE_GATEWAY.haproxy}\n  http-request set-header X-Mecha-Id` }),
    'bind :8000': `bind 127.0.0.1:${port}`,
  })
  await runProgram(t, 'haproxy', ['-db', '-f', example], port)
  return `http://127.0.0.1:${port}`
}

/** Starts Traefik with `examples/proxies/traefik-static.yml` and `traefik.yml`, as {@link startNginx} does nginx. */
export async function startTraefik(t: Parent, { authz, upstream, gatewayCredential, demand, passesKey }: ProxyOptions): Promise<string> {
  const folder = temporaryFolder(t)
  const port = await freePort()
  writeExample(folder, 'traefik.yml', {
    'http://127.0.0.1:8080': authz,
    'http://127.0.0.1:3000': upstream,
    ...(demand && { '/v1/authz\n': `/v1/authz?${demand}\n` }),
    ...(passesKey && { [KEY_TO_THE_GATEWAY.traefik]: '' }),
    // Without a credential, the middleware that adds it is left out.
    ...(!gatewayCredential && { 'mecha-keys-credential, ': '' }),
  })
  // It listens before it has read its routes, and says so there when it has.
  writeFileSync(join(folder, 'ready.yml'), "http: { routers: { ready: { rule: 'Path(`/_is_ready`)', priority: 100, service: 'ping@internal' } } }")
  const example = writeExample(folder, 'traefik-static.yml', {
    "address: ':8000'": `address: '127.0.0.1:${port}'`,
    'filename: /etc/traefik/mecha-keys.yml': `directory: ${join(folder, 'dynamic')}`,
  })
  mkdirSync(join(folder, 'dynamic'))
  for (const name of ['traefik.yml', 'ready.yml']) renameSync(join(folder, name), join(folder, 'dynamic', name))
  appendFileSync(example, '\nping: { manualRouting: true }\nglobal: { checkNewVersion: false }\n')
  await runProgram(t, 'traefik', ['--configFile', example], port, gatewayCredential ? { GATEWAY_CREDENTIAL: gatewayCredential } : {})
  await eventually(async () => (await fetch(`http://127.0.0.1:${port}/_is_ready`)).status === 200)
  return `http://127.0.0.1:${port}`
}

/** Starts Envoy with `examples/proxies/envoy.yaml`, as {@link startNginx} does nginx. */
export async function startEnvoy(t: Parent, { authz, upstream, gatewayCredential, demand, passesKey, longestLife }: ProxyOptions): Promise<string> {
  const folder = temporaryFolder(t)
  const port = await freePort()
  const example = writeExample(folder, 'envoy.yaml', {
    'address: 0.0.0.0, port_value: 8000': `address: 127.0.0.1, port_value: ${port}`,
    'port_value: 8080': `port_value: ${new URL(authz).port}`,
    'port_value: 3000': `port_value: ${new URL(upstream).port}`,
    ...(!gatewayCredential && { "headers_to_add: [{ key: x-gateway-authorization, value: 'Bearer %ENVIRONMENT(GATEWAY_CREDENTIAL)%' }]": 'headers_to_add: []' }),
    ...(passesKey && { [KEY_TO_THE_GATEWAY.envoy]: '' }),
    ...(longestLife && { '3600s': longestLife }),
    ...(demand && { 'path_prefix: /v1/authz?request=': `path_prefix: /v1/authz?${demand}&request=` }),
  })
  const env: Record<string, string> = gatewayCredential ? { GATEWAY_CREDENTIAL: gatewayCredential } : {}
  await runProgram(t, 'envoy', ['--use-dynamic-base-id', '--concurrency', '1', '--log-level', 'warn', '-c', example], port, env)
  return `http://127.0.0.1:${port}`
}

/** Writes a file of `examples/proxies/` with some of its text replaced, each of it wherever it stands and at least once. */
function writeExample(folder: string, name: string, replacements: Readonly<Record<string, string>>): string {
  const text = readFileSync(join(PACKAGE_ROOT, 'examples', 'proxies', name), 'utf8')
  // In one go, the longest first: what was put in is not looked at again. A port can begin as another one.
  const all = Object.keys(replacements).sort((a, b) => b.length - a.length)
  for (const from of all) if (!text.includes(from)) throw new Error(`${name} does not have ${from}`)
  const pattern = new RegExp(all.map((from) => from.replaceAll(/[^\w\n]/g, '\\$&')).join('|') || '(?!)', 'g')
  const path = join(folder, name)
  writeFileSync(path, text.replaceAll(pattern, (from) => replacements[from]!))
  return path
}

function hostOf(url: string): string {
  return new URL(url).host
}
