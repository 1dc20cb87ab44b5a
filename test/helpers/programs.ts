/** Programs that tests run beside the service: those of the system, and those that `.ci/run` installs for the tests alone. */

import { spawn, spawnSync, type ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import { mkdtempSync, rmSync } from 'node:fs'
import { connect } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { Test } from 'tap'
import { PACKAGE_ROOT } from '../../src/package-root.js'
import { eventually } from './eventually.js'

type Parent = Pick<Test, 'teardown'>

/** The virtual environment of the tests, and programs of the system, which Debian keeps where only root looks. */
export const PATH = `${join(PACKAGE_ROOT, '.programs/bin')}:${process.env['PATH']}:/usr/sbin`

export function isInstalled(program: string): boolean {
  return spawnSync('sh', ['-c', `command -v ${program}`], { env: { PATH } }).status === 0
}

/** Starts a program, and resolves when it listens. It ends with the test. */
export async function runProgram(t: Parent, program: string, args: string[], port: number, env: Record<string, string> = {}): Promise<ChildProcess> {
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

/** A folder that is removed with the test. */
export function temporaryFolder(t: Parent): string {
  const folder = mkdtempSync(join(tmpdir(), 'mecha-keys-program-'))
  t.teardown(() => rmSync(folder, { recursive: true, force: true }))
  return folder
}

function accepts(port: number): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = connect(port, '127.0.0.1')
    socket.once('connect', () => (socket.destroy(), resolve(true))).once('error', () => resolve(false))
  })
}
