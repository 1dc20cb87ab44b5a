/** The program as it is run: a process of its own, with an environment in which nothing is set but what the test says. */

import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { join } from 'node:path'
import type { Test } from 'tap'
import type { Environment } from '../../src/config.js'
import { PACKAGE_ROOT } from '../../src/package-root.js'

/** Longest wait for a line or for an end: a bound, and no expectation. */
const PATIENCE_MS = 40_000

export interface Ended {
  readonly code: number | null
  readonly signal: NodeJS.Signals | null
  readonly stdout: string
  readonly stderr: string
}

export interface RunOptions {
  readonly env?: Environment
  /** What stands on standard input; nothing otherwise. */
  readonly input?: string
  /** Whether standard input stays open, for `say`. */
  readonly keepsInput?: boolean
}

export interface Running {
  readonly pid: number
  /** Everything on standard output so far. */
  stdout(): string
  /** Everything on standard error so far. */
  stderr(): string
  /** Writes a line to standard input. */
  say(line: string): void
  /** Resolves when standard output holds a match. */
  line(pattern: RegExp): Promise<RegExpExecArray>
  /** Sends a signal to the process alone. */
  signal(signal: NodeJS.Signals): void
  /** Sends a signal to its whole process group, as a terminal does for Ctrl-C. */
  signalGroup(signal: NodeJS.Signals): void
  /** Resolves when the process has ended, and everything that writes where it wrote. */
  ended(): Promise<Ended>
}

/** Starts `mecha-keys` with some arguments. Whatever is left of its process group ends with the test. */
export function start(t: Pick<Test, 'teardown'>, args: readonly string[], options?: RunOptions): Running {
  return startCommand(t, process.execPath, [join(PACKAGE_ROOT, 'dist', 'src', 'main.js'), ...args], options)
}

/** Starts any program, in the package's own folder. Whatever is left of its process group ends with the test. */
export function startCommand(t: Pick<Test, 'teardown'>, program: string, args: readonly string[], { env = {}, input = '', keepsInput = false }: RunOptions = {}): Running {
  const child = spawn(program, args, {
    cwd: PACKAGE_ROOT,
    env: { PATH: process.env['PATH'], ...env },
    stdio: ['pipe', 'pipe', 'pipe'],
    detached: true,
  })
  const text = { stdout: '', stderr: '' }
  for (const name of ['stdout', 'stderr'] as const) child[name].setEncoding('utf8').on('data', (chunk: string) => (text[name] += chunk))
  child.stdin.on('error', () => {})
  child.stdin.write(input)
  if (!keepsInput) child.stdin.end()
  const exited = once(child, 'exit')
  const closed = once(child, 'close') as Promise<[number | null, NodeJS.Signals | null]>
  const signalGroup = (signal: NodeJS.Signals) => void process.kill(-child.pid!, signal)
  const told = () => `\n— standard output:\n${text.stdout}\n— standard error:\n${text.stderr}`
  t.teardown(async () => {
    try {
      signalGroup('SIGKILL')
    } catch {
      // Nothing is left of it.
    }
    await exited
  })
  return {
    pid: child.pid!,
    stdout: () => text.stdout,
    stderr: () => text.stderr,
    say: (line) => void child.stdin.write(`${line}\n`),
    signal: (signal) => void child.kill(signal),
    signalGroup,
    async line(pattern) {
      const found = () => pattern.exec(text.stdout)
      const ended = closed.then(() => true)
      const deadline = Date.now() + PATIENCE_MS
      for (let match = found(); ; match = found()) {
        if (match) return match
        const left = deadline - Date.now()
        const more = left > 0 && once(child.stdout, 'data', { signal: AbortSignal.timeout(left) }).then(() => false, () => true)
        if (!more || (await Promise.race([more, ended]))) {
          const last = found()
          if (last) return last
          throw new Error(`${args.join(' ')} never wrote ${pattern}${told()}`)
        }
      }
    },
    async ended() {
      let timer: NodeJS.Timeout
      const late = new Promise<never>((_resolve, reject) => {
        timer = setTimeout(() => reject(new Error(`${args.join(' ')} did not end${told()}`)), PATIENCE_MS)
      })
      const [code, signal] = await Promise.race([closed, late]).finally(() => clearTimeout(timer))
      return { code, signal, ...text }
    },
  }
}

/** Runs `mecha-keys` to its end. */
export function run(t: Test, args: readonly string[], options?: RunOptions): Promise<Ended> {
  return start(t, args, options).ended()
}
