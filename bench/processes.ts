/** The processes of a run. None takes time from another by sharing its thread. */

import { spawn, type ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { text } from 'node:stream/consumers'
import { PACKAGE_ROOT } from '../src/package-root.js'
import type { Load, Order } from './load.js'

const children = new Set<ChildProcess>()

/** Starts a script of the project, with nothing in its environment but what is said. */
export function start(file: string, args: readonly string[] = [], env: Record<string, string> = {}): ChildProcess {
  const child = spawn(process.execPath, [...execArgv(file), join(PACKAGE_ROOT, file), ...args], {
    env: { PATH: process.env['PATH'], NODE_ENV: 'production', ...env },
    stdio: ['pipe', 'pipe', 'inherit'],
  })
  children.add(child)
  child.once('exit', () => children.delete(child))
  return child
}

/** Ends a process and waits until it has ended. */
export async function stop(child: ChildProcess): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null) return
  const exited = once(child, 'exit')
  child.kill('SIGTERM')
  await exited
}

/** Ends whatever was started. */
export async function stopAll(): Promise<void> {
  await Promise.all([...children].map(stop))
}

/** The address or the JSON that a process prints when it is ready. All else is read and dropped, so that no pipe fills up. */
export function report(child: ChildProcess): Promise<string> {
  return new Promise((resolve, reject) => {
    createInterface({ input: child.stdout! }).on('line', (line) => /^(http:|\{)/.test(line) && resolve(line))
    child.once('exit', (code, signal) => reject(new Error(`${child.spawnargs.at(-1)} ended before it was ready (${code ?? signal})`)))
  })
}

/** Hands a script one line of JSON, and resolves to the one that it answers with before it ends. */
export async function ask<Answer>(file: string, question: object): Promise<Answer> {
  const child = start(file)
  child.stdin!.end(JSON.stringify(question))
  const [output] = await Promise.all([text(child.stdout!), once(child, 'exit')])
  if (child.exitCode !== 0) throw new Error(`${file} failed`)
  return JSON.parse(output) as Answer
}

/** Sends one order's load, and resolves to what came of it. Answers are 2xx, or 503 where that is asked for. */
export async function generateLoad(order: Order, { mayShed = false } = {}): Promise<Load> {
  const load = await ask<Load>('dist/bench/load.js', order)
  if (load.failures > 0 || (load.shed > 0 && !mayShed)) throw new Error(`${order.url}: ${load.failures} requests failed, ${load.shed} per second were shed`)
  if (!(load.rate > 0)) throw new Error(`${order.url}: no request was answered`)
  return load
}

/** Resident memory of a process in MiB, as the kernel counts it. */
export function rssOf(pid: number): number {
  return Number(/^VmRSS:\s+(\d+) kB$/m.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))![1]) / 1024
}

/** Garbage collections on demand, for what weighs memory. */
function execArgv(file: string): string[] {
  return file.endsWith('memory.js') ? ['--expose-gc'] : []
}
