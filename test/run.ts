/**
 * Runs the tests on a real PostgreSQL: the one that TEST_DATABASE_URL names (a superuser's URL), else a container
 * where a container runtime has one, else the embedded one. Arguments are files and folders. Without any, it is the
 * group that `npm test` runs: whatever ends in `.test.ts`, but for the stories of minutes and those with others' programs,
 * whose names end in `.long.test.ts` and which `--long` runs.
 */

import { rmSync } from 'node:fs'
import { sql, type Kysely } from 'kysely'
import { startEmbedded } from '../src/db/embedded/embedded.js'
import { migrate } from '../src/db/migrate.js'
import { ensureLogin } from '../src/db/logins.js'
import { openDatabase } from '../src/db/pool.js'
import type { Database } from '../src/db/tables.js'
import { ConfigError } from '../src/errors.js'
import { runFiles, testFiles } from './helpers/files.js'
import { dataFolder, LOGINS, openAdmin, urlFor } from './helpers/server.js'

/** Nothing that a test writes has to outlive it, and the passwords of those who connect thousands of times are no secret. */
const FAST = ['fsync=off', 'synchronous_commit=off', 'full_page_writes=off', 'max_connections=300', 'autovacuum=off', 'scram_iterations=1']
/** Longest wait for a container, whose image may have to be fetched first. */
const CONTAINER_TIMEOUT_MS = 180_000

/** What the server is called that TEST_DATABASE_URL names: its settings are its owner's. */
const GIVEN = 'TEST_DATABASE_URL'

const { files, server } = await begin().catch(giveUp)
process.stdout.write(`PostgreSQL: ${server.what}\n`)
/** Where test files leave what others need not make again. */
const shared = dataFolder()
const template = `mecha_keys_template_${process.pid}`
let isOk: boolean
try {
  await makeTemplate()
  isOk = await runFiles(files, { TEST_SERVER_URL: server.url, TEST_TEMPLATE: template, TEST_FOLDER: shared })
} finally {
  await admin(`DROP DATABASE IF EXISTS ${template}`)
  await server.stop()
  rmSync(shared, { recursive: true, force: true })
}
// When all is written.
process.stdout.write('', () => process.exit(isOk ? 0 : 1))

interface Server {
  readonly url: string
  readonly what: string
  readonly stop: () => Promise<void>
}

async function begin(): Promise<{ files: string[]; server: Server }> {
  return { files: testFiles(process.argv.slice(2)), server: await startPostgres() }
}

async function startPostgres(): Promise<Server> {
  const given = process.env['TEST_DATABASE_URL']
  if (given) return { url: given, what: GIVEN, stop: async () => {} }
  return (await startContainer()) ?? startEmbeddedForTests()
}

/** `undefined` where there is no container runtime, or none that has or gets the image. */
async function startContainer(): Promise<Server | undefined> {
  const { getContainerRuntimeClient } = await import('testcontainers')
  const answers = await getContainerRuntimeClient().then(() => true, () => false)
  if (!answers) return undefined
  const { PostgreSqlContainer } = await import('@testcontainers/postgresql')
  const starting = new PostgreSqlContainer('postgres:18').withCommand(['postgres', ...FAST.flatMap((flag) => ['-c', flag])]).start()
  let timer: NodeJS.Timeout
  const late = new Promise<never>((_resolve, reject) => (timer = setTimeout(() => reject(new Error(`it took longer than ${CONTAINER_TIMEOUT_MS / 1000} s`)), CONTAINER_TIMEOUT_MS)))
  try {
    const container = await Promise.race([starting, late])
    return { url: container.getConnectionUri(), what: 'a container', stop: async () => void (await container.stop()) }
  } catch (error) {
    starting.then((container) => container.stop()).catch(() => {})
    process.stdout.write(`A container runtime answers, but postgres:18 does not start: ${String((error as Error).message).split('\n')[0]}\n`)
    return undefined
  } finally {
    clearTimeout(timer!)
  }
}

async function startEmbeddedForTests(): Promise<Server> {
  const dataDir = dataFolder()
  const database = await startEmbedded({ dataDir, flags: FAST })
  const stop = async () => {
    await database.stop()
    rmSync(dataDir, { recursive: true, force: true })
  }
  return { url: database.urls.owner, what: 'embedded', stop }
}

/** One line where a person has to do something, and a stack where it is a bug. */
function giveUp(error: unknown): never {
  if (!(error instanceof ConfigError)) throw error
  process.stderr.write(`${error.message}\n`)
  process.exit(1)
}

async function makeTemplate(): Promise<void> {
  await admin(`CREATE DATABASE ${template}`)
  const db = openDatabase({ url: urlFor(server.url, template), size: 1, timeoutMs: 60_000, name: 'tests' })
  await migrate(db)
  for (const plane of ['control', 'runtime'] as const) await ensureLogin(db, plane, urlFor(server.url, template, LOGINS[plane]), 30_000)
  if (server.what !== GIVEN) for (const url of [server.url, ...Object.values(LOGINS).map((login) => urlFor(server.url, template, login))]) await hashAnew(db, url)
  await db.destroy()
}

/** Lets the server hash a password itself, as often as its settings say. */
async function hashAnew(db: Kysely<Database>, url: string): Promise<void> {
  const { username, password } = new URL(url)
  await sql`ALTER ROLE ${sql.id(username)} PASSWORD ${sql.lit(decodeURIComponent(password))}`.execute(db)
}

async function admin(statement: string): Promise<void> {
  const pool = openAdmin(server.url)
  await pool.query(statement)
  await pool.end()
}
