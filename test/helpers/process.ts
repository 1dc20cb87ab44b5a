/** The service as a process of its own, and a shell beside it. */

import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import type { Test } from 'tap'
import type { Environment } from '../../src/config.js'
import { PACKAGE_ROOT } from '../../src/package-root.js'

/** Nothing of the environment of the tests but what finds programs. */
const around = () => ({ PATH: process.env['PATH'], HOME: process.env['HOME'] })

/** Starts `mecha-keys serve` on a free port; resolves to its address when it listens. */
export async function serveProcess(t: Test, environment: Environment): Promise<string> {
  const child = spawn(process.execPath, [join(PACKAGE_ROOT, 'dist', 'src', 'main.js'), 'serve'], {
    cwd: PACKAGE_ROOT,
    env: { ...around(), ...environment, PORT: '0' },
    stdio: ['ignore', 'pipe', 'pipe'],
  })
  const exited = once(child, 'exit')
  t.teardown(async () => {
    child.kill('SIGTERM')
    await exited
  })
  const lines: string[] = []
  child.stderr.on('data', (data) => lines.push(String(data)))
  for await (const line of createInterface({ input: child.stdout })) {
    lines.push(line)
    const url = /listening at (http:\/\/[\d.:]+)/.exec(line)?.[1]
    if (!url) continue
    child.stdout.resume()
    return url
  }
  throw new Error(`the service ended before it listened:\n${lines.join('\n')}`)
}

export interface Shell {
  /** Runs one line, and resolves to what it wrote, both streams together, and its exit code. */
  run(line: string): Promise<{ output: string; code: number }>
}

/** A bash that keeps its variables from line to line, as a terminal does. */
export function openShell(t: Test, environment: Environment): Shell {
  const bash = spawn('bash', ['--norc', '--noprofile'], { cwd: PACKAGE_ROOT, env: { ...around(), ...environment }, stdio: ['pipe', 'pipe', 'inherit'] })
  const output = createInterface({ input: bash.stdout })[Symbol.asyncIterator]()
  const exited = once(bash, 'exit')
  t.teardown(async () => {
    bash.stdin.end()
    await exited
  })
  bash.stdin.write('exec 2>&1\n')
  return {
    async run(line) {
      // An answer need not end in a line feed; the mark stands on a line of its own.
      bash.stdin.write(`${line}\nprintf '\\n-- done %d --\\n' $?\n`)
      const lines: string[] = []
      for (;;) {
        const { value, done } = await output.next()
        if (done) throw new Error(`bash ended at: ${line}\n${lines.join('\n')}`)
        const code = /^-- done (\d+) --$/.exec(value)?.[1]
        if (code !== undefined) return { output: lines.join('\n').trim(), code: Number(code) }
        lines.push(value)
      }
    },
  }
}
