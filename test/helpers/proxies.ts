/** Real proxies with the configurations of `examples/proxies/`, in which nothing is replaced but addresses and paths. */

import { spawn, spawnSync, type ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { connect } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { Test } from 'tap'
import { freePort } from '../../src/db/free-port.js'
import { PACKAGE_ROOT } from '../../src/package-root.js'
import { eventually } from './eventually.js'

export interface ProxyOptions {
  /** Of mecha-keys, or of its `AUTHZ_LISTEN`: `http://127.0.0.1:8080`. */
  readonly authz: string
  /** Of the application behind the proxy: `http://127.0.0.1:3000`. */
  readonly upstream: string
  /** What the proxy shows mecha-keys; nothing for `AUTHZ_LISTEN`. */
  readonly gatewayCredential?: string
  /** Whether the upstream is a gateway itself, which the key passes to: `examples/gateway/README.md`. */
  readonly passesKey?: boolean
}

/** For nginx, in the place of what keeps the key away from the upstream. */
export const KEY_TO_THE_GATEWAY = 'proxy_set_header X-Mecha-Key $http_x_mecha_key;'

/** Programs of the system, which Debian keeps where only root looks. */
const PATH = `${process.env['PATH']}:/usr/sbin`

export function isInstalled(program: 'nginx' | 'caddy' | 'haproxy'): boolean {
  return spawnSync('sh', ['-c', `command -v ${program}`], { env: { PATH } }).status === 0
}

/** Starts nginx with `examples/proxies/nginx.conf`, and resolves to its URL when it listens. It ends with the test. */
export async function startNginx(t: Pick<Test, 'teardown'>, { authz, upstream, gatewayCredential, passesKey }: ProxyOptions): Promise<string> {
  const folder = temporaryFolder(t)
  const port = await freePort()
  const credential = join(folder, 'credential')
  writeFileSync(credential, gatewayCredential ? `proxy_set_header X-Gateway-Authorization "Bearer ${gatewayCredential}";\n` : '', { mode: 0o600 })
  const example = writeExample(folder, 'nginx.conf', {
    '127.0.0.1:8080': hostOf(authz),
    '127.0.0.1:3000': hostOf(upstream),
    'listen 8000;': `listen 127.0.0.1:${port};`,
    '/etc/nginx/mecha-keys.credential': credential,
    ...(passesKey && { "proxy_set_header X-Mecha-Key '';": KEY_TO_THE_GATEWAY }),
  })
  // As little as nginx needs around it, and nowhere but in this folder.
  const temporary = ['client_body', 'proxy', 'fastcgi', 'uwsgi', 'scgi'].map((name) => `${name}_temp_path ${folder}/${name};`)
  const main = join(folder, 'main.conf')
  writeFileSync(main, `${process.getuid?.() === 0 ? 'user root;' : ''} worker_processes 1; daemon off; pid ${folder}/pid; error_log stderr warn;
    events {} http { access_log off; ${temporary.join(' ')} include ${example}; }`)
  await run(t, 'nginx', ['-e', 'stderr', '-p', folder, '-c', main], port)
  return `http://127.0.0.1:${port}`
}

/** Writes a file of `examples/proxies/` with some of its text replaced, each of it wherever it stands and at least once. */
function writeExample(folder: string, name: string, replacements: Readonly<Record<string, string>>): string {
  let text = readFileSync(join(PACKAGE_ROOT, 'examples', 'proxies', name), 'utf8')
  for (const [from, to] of Object.entries(replacements)) {
    if (!text.includes(from)) throw new Error(`${name} does not have ${from}`)
    text = text.replaceAll(from, to)
  }
  const path = join(folder, name)
  writeFileSync(path, text)
  return path
}

/** Starts a program and resolves when it listens. */
async function run(t: Pick<Test, 'teardown'>, program: string, args: string[], port: number, env: Record<string, string> = {}): Promise<ChildProcess> {
  const child = spawn(program, args, { env: { PATH, ...env }, stdio: ['ignore', 'pipe', 'pipe'] })
  let said = ''
  for (const stream of [child.stdout, child.stderr]) stream.setEncoding('utf8').on('data', (text: string) => (said += text))
  const exited = once(child, 'exit')
  t.teardown(async () => {
    child.kill('SIGTERM')
    await exited
  })
  const hasEnded = () => child.exitCode !== null || child.signalCode !== null
  await eventually(async () => hasEnded() || (await accepts(port)))
  if (hasEnded()) throw new Error(`${program} ended:\n${said}`)
  return child
}

function accepts(port: number): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = connect(port, '127.0.0.1')
    socket.once('connect', () => (socket.destroy(), resolve(true))).once('error', () => resolve(false))
  })
}

function hostOf(url: string): string {
  return new URL(url).host
}

function temporaryFolder(t: Pick<Test, 'teardown'>): string {
  const folder = mkdtempSync(join(tmpdir(), 'mecha-keys-proxy-'))
  t.teardown(() => rmSync(folder, { recursive: true, force: true }))
  return folder
}
