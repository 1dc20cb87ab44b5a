/** A shell, as a person at a terminal has one. */

import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { createInterface } from 'node:readline'
import type { Test } from 'tap'
import { PACKAGE_ROOT } from '../../src/package-root.js'

export interface Shell {
  /** Runs one line, and resolves to what it wrote, both streams together, and its exit code. */
  run(line: string): Promise<{ output: string; code: number }>
}

/** A bash that keeps its variables from line to line, as a terminal does. */
export function openShell(t: Test): Shell {
  const bash = spawn('bash', ['--norc', '--noprofile'], { cwd: PACKAGE_ROOT, env: { PATH: process.env['PATH'], HOME: process.env['HOME'] }, stdio: ['pipe', 'pipe', 'inherit'] })
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
