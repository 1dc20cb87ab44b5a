/** PostgreSQL as an administrator has it: the server and the programs around it, which the embedded package lacks. */

import { execFile, execFileSync } from 'node:child_process'
import { chownSync, existsSync, mkdtempSync, readdirSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { Client } from 'pg'
import type { Test } from 'tap'
import { freePort } from '../../src/db/embedded/free-port.js'

/** Where Debian's package `postgresql` has its programs: a folder for each version. */
const DEBIAN = '/usr/lib/postgresql'
const NEEDED = ['initdb', 'pg_ctl', 'psql', 'pg_dump', 'pg_restore', 'pg_basebackup']

/** The folder with a server and its programs: `TEST_POSTGRES_BIN`, or the newest of Debian's; `undefined` without one. */
export function postgresPrograms(): string | undefined {
  const versions = existsSync(DEBIAN) ? readdirSync(DEBIAN).sort((a, b) => Number(b) - Number(a)) : []
  const folders = [process.env['TEST_POSTGRES_BIN'] ?? '', ...versions.map((version) => join(DEBIAN, version, 'bin'))]
  return folders.find((folder) => folder !== '' && NEEDED.every((program) => existsSync(join(folder, program))))
}

export interface Cluster {
  readonly folder: string
  readonly port: number
  /** The URL of a database, as a user. Nobody is asked for a password. */
  url(user: string, database: string): string
  start(): Promise<void>
  /** Ends it in order, or at once as a crash does. */
  stop(how?: 'fast' | 'immediate'): Promise<void>
  /** Makes a primary of a standby. */
  promote(): Promise<void>
}

/** A new cluster, or one that another's base backup is the beginning of. Ends with the test. */
export async function createCluster(t: Pick<Test, 'teardown'>, programs: string, { standbyOf, flags = [] }: { readonly standbyOf?: Cluster; readonly flags?: readonly string[] } = {}): Promise<Cluster> {
  const folder = mkdtempSync(join(tmpdir(), 'mecha-keys-postgres-'))
  const owner = unprivileged()
  if (owner) chownSync(folder, owner.uid, owner.gid)
  const data = join(folder, 'data')
  const port = await freePort()
  const run = async (program: string, args: readonly string[]) => void (await promisify(execFile)(join(programs, program), args, { ...owner, cwd: folder }))
  const settings = `-p ${port} -h 127.0.0.1 -k '' -c wal_keep_size=256MB -c hot_standby=on -c fsync=off${flags.map((flag) => ` -c ${flag}`).join('')}`
  const cluster: Cluster = {
    folder, port,
    url: (user, database) => `postgres://${user}@127.0.0.1:${port}/${database}`,
    start: () => run('pg_ctl', ['-D', data, '-s', '-l', join(folder, 'log'), '-o', settings, '-w', 'start']),
    stop: (how = 'fast') => run('pg_ctl', ['-D', data, '-m', how, '-w', 'stop']),
    promote: () => run('pg_ctl', ['-D', data, '-w', 'promote']),
  }
  t.teardown(async () => {
    // It may be down.
    await cluster.stop('immediate').catch(() => {})
    rmSync(folder, { recursive: true, force: true })
  })
  if (standbyOf) await run('pg_basebackup', ['-D', data, '-d', standbyOf.url('postgres', 'postgres'), '-R', '-X', 'stream', '-c', 'fast'])
  else await run('initdb', ['-D', data, '-U', 'postgres', '-A', 'trust', '--encoding=UTF8', '--no-locale', '--no-sync'])
  await cluster.start()
  return cluster
}

/** PostgreSQL does not run as root. */
function unprivileged(): { uid: number; gid: number } | undefined {
  if (process.getuid?.() !== 0) return undefined
  const id = (flag: string) => Number(execFileSync('id', [flag, 'postgres'], { encoding: 'utf8' }))
  return { uid: id('-u'), gid: id('-g') }
}

/** Makes the owner and the database as `docs/deployment.md` has it, and says where the service and its commands connect. */
export async function createServiceDatabase(cluster: Cluster): Promise<{ MIGRATE_DATABASE_URL: string; DATABASE_URL: string; RUNTIME_DATABASE_URL: string }> {
  const client = new Client({ connectionString: cluster.url('postgres', 'postgres') })
  await client.connect()
  await client.query("CREATE ROLE mecha_keys_owner LOGIN CREATEROLE PASSWORD 'owner'")
  await client.query('CREATE DATABASE mecha_keys OWNER mecha_keys_owner')
  await client.end()
  const url = (user: string) => cluster.url(`${user}:made-up`, 'mecha_keys')
  return { MIGRATE_DATABASE_URL: url('mecha_keys_owner'), DATABASE_URL: url('mecha_keys_control_login'), RUNTIME_DATABASE_URL: url('mecha_keys_runtime_login') }
}
