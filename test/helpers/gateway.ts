/** The gateway SDK in front of a real service. */

import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { createServer, request } from 'node:http'
import { connect, createServer as createTcpServer, type AddressInfo, type Socket } from 'node:net'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { text } from 'node:stream/consumers'
import type { Test } from 'tap'
import { createVerifier, type Verifier, type VerifierOptions } from '../../src/gateway-sdk/index.js'
import { PACKAGE_ROOT } from '../../src/package-root.js'
import type { TestDatabase } from './database.js'
import { eventually } from './eventually.js'
import { fresh, startService, type Service } from './service.js'
import { isFromMemory } from './verdicts.js'

export { isFromMemory, isHeld, outcome } from './verdicts.js'

export interface Served {
  readonly service: Service
  readonly url: string
  /** A credential of `acme`. */
  readonly credential: string
}

/** A service that listens, whose feed is fresh. Its bound is short, and so are the times between its confirmations. */
export async function serve(t: Test, environment: Record<string, string> = {}, database?: TestDatabase): Promise<Served> {
  const service = await startService(t, { REVOCATION_MAX_STALENESS: '2s', ...environment }, database)
  const credential = await service.gateway()
  const url = await service.app.listen({ port: 0 })
  await fresh(service)
  return { service, url, credential }
}

/** Another replica of the same service. */
export async function replicaOf(t: Test, { service }: Served, environment: Record<string, string> = {}): Promise<{ service: Service; url: string }> {
  const replica = await startService(t, { REVOCATION_MAX_STALENESS: '2s', ROOT_SECRETS: service.config.ROOT_SECRETS!.join(), ...environment }, service.database)
  await fresh(replica)
  return { service: replica, url: await replica.app.listen({ port: 0 }) }
}

export function verifierFor(t: Test, { url, credential }: Pick<Served, 'url' | 'credential'>, options: Partial<VerifierOptions> = {}): Verifier {
  const verifier = createVerifier({ url, credential, ...options })
  t.teardown(() => verifier.close())
  return verifier
}

export interface Split {
  readonly url: string
  /** What has come through so far. */
  readonly counts: { verify: number; other: number }
}

/**
 * A proxy that leads verifies to one address and everything else to another, as a balancer in front of two replicas may.
 *
 * @param onRequest told of each request with its body; `false` keeps it from getting through
 */
export async function split(t: Pick<Test, 'teardown'>, verifyUrl: string, otherUrl: string, onRequest?: (path: string, body: string) => boolean | void): Promise<Split> {
  const counts = { verify: 0, other: 0 }
  const proxy = createServer(async (incoming, answer) => {
    const body = onRequest && (await text(incoming))
    if (onRequest?.(incoming.url!, body!) === false) return void answer.destroy()
    const isVerify = incoming.url === '/v1/verify'
    counts[isVerify ? 'verify' : 'other']++
    const to = new URL(isVerify ? verifyUrl : otherUrl)
    const outgoing = request({ host: to.hostname, port: to.port, path: incoming.url, method: incoming.method, headers: incoming.headers }, (answered) => {
      answer.writeHead(answered.statusCode!, answered.headers)
      answered.on('error', () => answer.destroy())
      answered.pipe(answer)
    })
    outgoing.on('error', () => answer.destroy())
    answer.on('close', () => outgoing.destroy())
    if (body === undefined) incoming.pipe(outgoing)
    else outgoing.end(body)
  }).listen(0, '127.0.0.1')
  await once(proxy, 'listening')
  t.teardown(() => (proxy.closeAllConnections(), proxy.close()))
  return { url: `http://127.0.0.1:${(proxy.address() as AddressInfo).port}`, counts }
}

/** A way on which what the service says comes drop by drop, in its order, and later and later; what is said to it comes at once. */
export async function drip(t: Pick<Test, 'teardown'>, to: string, everyMs: number) {
  const { hostname, port } = new URL(to)
  const open = new Set<Socket>()
  let drops = 0
  const proxy = createTcpServer((near) => {
    const far = connect(Number(port), hostname)
    const waiting: Buffer[] = []
    const timer = setInterval(() => {
      const next = waiting.shift()
      if (!next) return
      near.write(next)
      drops++
    }, everyMs)
    far.on('data', (chunk) => waiting.push(chunk))
    near.on('data', (chunk) => far.write(chunk))
    for (const [one, other] of [[near, far], [far, near]] as const) {
      open.add(one)
      one.on('error', () => {}).on('close', () => (open.delete(one), clearInterval(timer), other.destroy()))
    }
  }).listen(0, '127.0.0.1')
  await once(proxy, 'listening')
  t.teardown(() => (open.forEach((socket) => socket.destroy()), proxy.close()))
  return { url: `http://127.0.0.1:${(proxy.address() as AddressInfo).port}`, drops: () => drops }
}

/** Resolves when the verifier answers for a key from memory. */
export async function held(verifier: Verifier, key: string): Promise<void> {
  await eventually(async () => isFromMemory(verifier, key))
}

/** A gateway in a process of its own. */
export function startGateway(t: Test, args: readonly string[], environment: Record<string, string> = {}) {
  const child = spawn(process.execPath, [join(PACKAGE_ROOT, 'dist', 'test', 'helpers', 'gateway-process.js'), ...args], { stdio: ['pipe', 'pipe', 'inherit'], env: { PATH: process.env['PATH'], ...environment } })
  const lines = createInterface({ input: child.stdout })[Symbol.asyncIterator]()
  const exited = once(child, 'exit')
  t.teardown(async () => {
    child.kill('SIGKILL')
    await exited
  })
  return {
    async ask<T = { outcome: string; wasHeld: boolean; isFresh: boolean }>(line: string): Promise<T> {
      child.stdin.write(`${line}\n`)
      return JSON.parse((await lines.next()).value as string) as T
    },
    signal: (signal: NodeJS.Signals) => void child.kill(signal),
  }
}
