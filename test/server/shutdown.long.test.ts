/** How a process ends that waits for a name server. Only root can put one where nobody answers. */

import { spawnSync } from 'node:child_process'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { PACKAGE_ROOT } from '../../src/package-root.js'
import { LAST_STEPS_MS } from '../../src/server/serve.js'
import { startCommand, type Running } from '../helpers/process.js'

const MAIN = join(PACKAGE_ROOT, 'dist', 'src', 'main.js')
/** The time that a loaded machine takes to start what takes no time. */
const SLACK_MS = 3000

/** Namespaces of its own: a loopback and a resolv.conf that nobody else sees. */
const NAMESPACES = ['--mount', '--net']
const canIsolate = spawnSync('unshare', [...NAMESPACES, 'sh', '-c', 'ip link set lo up && mount --bind /etc/hosts /etc/hosts']).status === 0

t.test('a name server that does not answer holds up no end', { skip: !canIsolate && 'needs unshare, ip, and the right to use them' }, async (t) => {
  const silent = await silentNameServer(t)
  // Asks for what needs the database, again and again: look-ups pile up.
  const env = {
    DATABASE_URL: 'postgres://mecha:keys@db.example.com/keys', ROOT_SECRETS: 'x'.repeat(40), OIDC_ISSUER: 'https://issuer.example.com',
    PORT: '8080', SHUTDOWN_TIMEOUT: '1s', DATABASE_TIMEOUT: '1s',
  }
  const program = [process.execPath, MAIN, 'serve']
  const run = () => startCommand(t, 'unshare', [...NAMESPACES, 'sh', '-c', silent, ...program], { env })

  const service = run()
  await pileUp(service)
  let asked = performance.now()
  service.signal('SIGTERM')
  const { code, signal } = await service.ended()
  t.same([code, signal], [null, 'SIGTERM'], 'ended by the signal itself: nothing else ends a look-up')
  t.ok(performance.now() - asked < 1000 + LAST_STEPS_MS + SLACK_MS)

  const stubborn = run()
  await pileUp(stubborn)
  asked = performance.now()
  stubborn.signal('SIGTERM')
  await stubborn.line(/"msg":"draining"/)
  stubborn.signal('SIGTERM')
  t.match(await stubborn.ended(), { code: null, signal: 'SIGTERM' })
  t.ok(performance.now() - asked < SLACK_MS, 'a second one ends at once')
})

/** A shell's script that puts a name server where nobody answers, asks the service for readiness all the time, and becomes `"$@"`. */
async function silentNameServer(t: Test): Promise<string> {
  const folder = mkdtempSync(join(tmpdir(), 'mecha-keys-names-'))
  t.teardown(() => rmSync(folder, { recursive: true, force: true }))
  const resolvConf = join(folder, 'resolv.conf')
  writeFileSync(resolvConf, 'nameserver 127.0.0.1\n')
  const script = `require('dgram').createSocket('udp4').bind(53, '127.0.0.1')
    setInterval(() => fetch('http://127.0.0.1:8080/readyz').catch(() => {}), 50)`
  return `ip link set lo up && mount --bind ${resolvConf} /etc/resolv.conf && { '${process.execPath}' -e "${script}" > /dev/null 2>&1 & exec "$0" "$@"; }`
}

/** Resolves when as many look-ups wait as there are threads for them, and more. */
async function pileUp(service: Running): Promise<void> {
  await service.line(/listening at http/)
  await service.line(/(?:"route":"\/readyz"[^]*?){5}/)
}
