/** The processes of a run: the service, the ceiling, the load generator. None takes time from another by sharing its thread. */

import { spawn, type ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { text } from 'node:stream/consumers'
import { PACKAGE_ROOT } from '../src/package-root.js'
import type { Service } from './cases.js'
import type { Load, Order } from './load.js'

/** The same on both sides of a ratio. */
const BOTH = { NODE_ENV: 'production', LOG_LEVEL: 'warn' }

const children = new Set<ChildProcess>()

/** The service as it is shipped, on an embedded PostgreSQL that keeps what it is told to keep. */
export async function startService(dataDir: string): Promise<Service> {
  const child = start('src/main.js', ['serve'], { ...BOTH, DATA_DIR: dataDir, PORT: '0', MAX_ACTIVE_KEYS_PER_MECHA: '100' })
  const printed = await printedUntil(child, /^export GATEWAY_CREDENTIAL=/)
  const exported = Object.fromEntries(printed.flatMap((line) => [...line.matchAll(/^export (\w+)=(\S+)$/g)].map(([, name, value]) => [name, value])))
  return { url: exported['URL'], operator: exported['OPERATOR_TOKEN'], gateway: exported['GATEWAY_CREDENTIAL'] }
}

/** The address of the ceiling. */
export async function startCeiling(): Promise<string> {
  const [line] = await printedUntil(start('bench/ceiling.js', [], BOTH), /^http:/)
  return line!
}

/** Sends one order's load, and resolves to what came of it. */
export async function generateLoad(order: Order): Promise<Load> {
  const child = start('bench/load.js', [], {})
  child.stdin!.end(JSON.stringify(order))
  const [output] = await Promise.all([text(child.stdout!), once(child, 'exit')])
  if (child.exitCode !== 0) throw new Error('the load generator failed')
  return JSON.parse(output) as Load
}

/** Ends what was started, and waits until it has ended. */
export async function stopAll(): Promise<void> {
  await Promise.all(
    [...children].map(async (child) => {
      const exited = once(child, 'exit')
      child.kill('SIGTERM')
      await exited
    }),
  )
}

function start(file: string, args: string[], env: Record<string, string>): ChildProcess {
  const child = spawn(process.execPath, [join(PACKAGE_ROOT, 'dist', file), ...args], {
    env: { PATH: process.env['PATH'], ...env },
    stdio: ['pipe', 'pipe', 'inherit'],
  })
  children.add(child)
  child.once('exit', () => children.delete(child))
  return child
}

/** The lines up to the one awaited. What is printed after that is read and dropped, so that no pipe fills up. */
function printedUntil(child: ChildProcess, awaited: RegExp): Promise<string[]> {
  const lines: string[] = []
  return new Promise((resolve, reject) => {
    createInterface({ input: child.stdout! }).on('line', (line) => {
      lines.push(line)
      if (awaited.test(line)) resolve(lines)
    })
    child.once('exit', (code, signal) => reject(new Error(`${child.spawnargs[1]} ended before it served (${code ?? signal})`)))
  })
}
