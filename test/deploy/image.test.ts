/** What a deployment is made of: the image's contents, the secrets, the compose file. No container runtime is needed. */

import { execFileSync, spawn, type ChildProcess } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { once } from 'node:events'
import { chmodSync, copyFileSync, cpSync, existsSync, linkSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { basename, dirname, join, posix } from 'node:path'
import { createInterface } from 'node:readline'
import { text } from 'node:stream/consumers'
import { sql } from 'kysely'
import t, { type Test } from 'tap'
import { parse } from 'yaml'
import { loadConfig, settingsTable, type Environment } from '../../src/config.js'
import { pendingMigrations } from '../../src/db/migrate.js'
import { PACKAGE_ROOT } from '../../src/package-root.js'
import { LAST_STEPS_MS } from '../../src/server/serve.js'
import { createDatabase, type TestDatabase } from '../helpers/database.js'
import { eventually } from '../helpers/eventually.js'
import { fresh, startService } from '../helpers/service.js'

const compose = parse(read('docker-compose.yml'), { merge: true })
const services: [string, any][] = Object.entries(compose.services)
const ours = services.filter(([, { image }]) => image === 'mecha-keys')
const stages = stagesOf(read('Dockerfile'))
const base = stages[0]!
const image = stages.at(-1)!
/** What make-secrets makes, and where the service finds it. */
const SECRETS = ['builtin-issuer.pem', 'database-url', 'root-secrets', 'runtime-database-url']
const SECRETS_FOLDER = '/run/secrets/service'
/** Where PostgreSQL's socket is, through which its owner comes. */
const SOCKET_FOLDER = '/run/postgresql'
/** The names of postgres' own image that are used here. */
const POSTGRES = ['POSTGRES_USER', 'POSTGRES_DB', 'POSTGRES_PASSWORD_FILE']

/** Laid out once, for all tests. */
let laidOut: string | undefined
const imageRoot = () => (laidOut ??= layOut())

// ── The secrets ──

t.test('secrets are made once, readable by their owner alone, and never shown', async (t) => {
  const folder = temporaryFolder(t)
  const first = await makeSecrets(folder)
  const files = filesOf(folder)
  t.same(files, SECRETS)
  t.same(first.output.trim().split('\n').sort(), files.map((file) => `made ${file}`))
  for (const file of files) t.equal(statSync(join(folder, file)).mode & 0o777, 0o400, file)

  const before = contentsOf(folder)
  const again = await makeSecrets(folder)
  t.same(again, { code: 0, output: '' }, 'nothing is left to make')
  t.same(contentsOf(folder), before)
})

t.test('a secret that is missing is made again, and the others are kept', async (t) => {
  const folder = temporaryFolder(t)
  await makeSecrets(folder)
  const before = contentsOf(folder)
  rmSync(join(folder, 'root-secrets'))
  writeFileSync(join(folder, 'root-secrets.new'), 'half of a sec', { mode: 0o400 })
  t.match(await makeSecrets(folder), { code: 0 })
  const { 'root-secrets': root, ...after } = contentsOf(folder)
  const { 'root-secrets': lost, ...others } = before
  t.not(root, lost)
  t.equal(root?.length, 43)
  t.same(after, others)
})

t.test('two deployments have no secret in common', async (t) => {
  const [one, other] = [temporaryFolder(t), temporaryFolder(t)]
  await Promise.all([makeSecrets(one), makeSecrets(other)])
  const values = new Set(Object.values(contentsOf(one)))
  t.same(Object.values(contentsOf(other)).filter((value) => values.has(value)), [])
})

t.test("the owner comes through the database's socket, which nobody else has, with a password that nobody knows", async (t) => {
  const { postgres, migrate } = compose.services
  const url = new URL(migrate.environment.MIGRATE_DATABASE_URL)
  t.same([url.username, url.password, url.pathname], [postgres.environment.POSTGRES_USER, '', `/${postgres.environment.POSTGRES_DB}`])
  t.equal(decodeURIComponent(url.hostname), SOCKET_FOLDER)
  const mounts = services.flatMap(([name, { volumes }]) => (volumes as string[]).filter((volume) => volume.startsWith('postgres-socket:')).map((volume) => [name, volume]))
  t.same(mounts, [['postgres', `postgres-socket:${SOCKET_FOLDER}`], ['migrate', `postgres-socket:${SOCKET_FOLDER}:ro`]])
  const password = () => readFileSync(postgres.environment.POSTGRES_PASSWORD_FILE, 'utf8').trim()
  if (process.platform === 'linux') {
    t.match(password(), /^[0-9a-f-]{36}$/)
    t.not(password(), password(), 'another one whenever it is read')
  }
})

// ── The image's contents, run ──

t.test('what the image holds migrates an empty database and serves it with the generated secrets', async (t) => {
  const root = imageRoot()
  const folder = temporaryFolder(t)
  await makeSecrets(folder)
  const database = await createDatabase(t, { empty: true })
  pointAt(t, database, folder)
  const asMigrate = { ...environmentOf('migrate', folder), MIGRATE_DATABASE_URL: database.owner }
  const migrating = await run(root, ['migrate', '--with-logins'], asMigrate)
  t.match(migrating, { code: 0, output: /^applied 0001_roles, / })
  t.match(await run(root, ['migrate', '--with-logins'], asMigrate), { code: 0, output: 'nothing to apply\n' })

  const environment = { ...environmentOf('mecha-keys', folder), PORT: '0' }
  const { child, port, log } = await startServing(t, root, environment)
  const call = async (method: string, path: string, credential?: string, body?: object) => {
    const response = await fetch(`http://127.0.0.1:${port}${path}`, {
      method,
      headers: { ...(credential && { authorization: `Bearer ${credential}` }), ...(body && { 'content-type': 'application/json' }) },
      ...(body && { body: JSON.stringify(body) }),
    })
    return { status: response.status, body: (await response.json()) as any }
  }
  await eventually(async () => (await call('GET', '/readyz')).body.ready)

  const token = await run(root, ['operator-token', '--org', 'acme'], environment)
  const gateway = await run(root, ['gateway', 'create', '--org', 'acme', '--name', 'edge'], environment)
  t.match([token.code, gateway.code], [0, 0])
  const issued = await call('POST', '/v1/keys', token.output.trim(), { mecha: 'sales^acme' })
  t.equal(issued.status, 201)
  t.match(await call('POST', '/v1/verify', gateway.output.trim(), { key: issued.body.plaintext_key }), {
    status: 200,
    body: { valid: true, key_id: issued.body.key.id },
  })

  const healthcheck = JSON.parse(/CMD (\[.*)$/.exec(image.argument('HEALTHCHECK'))![1]!) as string[]
  const isHealthy = () => exitOf(spawn(process.execPath, healthcheck.slice(1), { env: { PORT: String(port) }, stdio: 'ignore' }))
  t.equal(healthcheck[0], 'node')
  t.equal(await isHealthy(), 0, 'the health check passes')
  t.equal(await stop(child), 0, 'it ends in the time that compose gives it')
  t.equal(await isHealthy(), 1, 'and the health check fails')
  for (const secret of [...Object.values(contentsOf(folder)), token.output.trim(), gateway.output.trim(), issued.body.plaintext_key])
    t.notOk(log().includes(secret.trim()), 'no secret is in the log')
})

t.test('the image has no embedded PostgreSQL, and says so', async (t) => {
  const data = temporaryFolder(t)
  const root = imageRoot()
  for (const command of [['serve'], ['migrate'], ['config'], ['operator-token', '--org', 'acme']])
    t.match(await run(root, command, { BUILTIN_ISSUER: 'on', DATA_DIR: data }), { code: 78, output: /^mecha-keys: no database is named, [^\n]*: set DATABASE_URL or DATABASE_URL_FILE\n$/ }, command.join(' '))
  t.same(readdirSync(data), [], 'and nothing is made')
  // As in the image, where the default is a folder that is not to be written to.
  t.match(await run(root, ['serve'], { DATA_DIR: '/proc/x' }), { code: 78, output: /^mecha-keys: no database is named, [^\n]*\n$/ })
})

t.test('a database that is named is never passed over for the embedded one', async (t) => {
  const data = temporaryFolder(t)
  const database = await createDatabase(t, { empty: true })
  t.match(await run(PACKAGE_ROOT, ['migrate'], { MIGRATE_DATABASE_URL: database.owner, DATA_DIR: data }), { code: 0, output: /^applied 0001_roles, / })
  t.same(await pendingMigrations(database.db), [], 'it is the one that was migrated')
  t.same(readdirSync(data), [])

  const runtime = await startService(t, { PLANES: 'runtime', DATABASE_URL: undefined }, database)
  await fresh(runtime)
  t.match(await runtime.call('GET', '/readyz'), { status: 200, body: { checks: { database_runtime: 'ok' } } }, 'one login is enough for one plane')
  await t.rejects(startService(t, { PLANES: 'control', DATABASE_URL: undefined }, database), { message: 'DATABASE_URL or DATABASE_URL_FILE must be set' })
})

t.test('what the image adds to its base is what runs, and less than 30 MB', async (t) => {
  const root = imageRoot()
  const files = filesOf(root)
  t.same(files.filter((file) => /\.(?:map|d\.ts|test\.js)$/.test(file)), [])
  t.ok(files.some((file) => /node_modules\/fastify\/licen[cs]e/i.test(file)), 'and the licences')
  // A file takes up whole blocks.
  const bytes = files.reduce((sum, file) => sum + Math.ceil(statSync(join(root, file)).size / 4096) * 4096, 0)
  t.ok(bytes < 30_000_000, `${bytes} bytes`)
})

t.test('a deployment has 100 packages at most', async (t) => {
  const { packages } = JSON.parse(read('package-lock.json')) as { packages: Record<string, { dev?: true; devOptional?: true; optional?: true; link?: true }> }
  const deployed = Object.entries(packages).filter(([path, { dev, devOptional, optional, link }]) => path !== '' && !dev && !devOptional && !optional && !link)
  t.ok(deployed.length < 100, `${deployed.length}, and argon2's binary`)
})

t.test('the image runs as a user that has no name', async (t) => {
  const nameless = `
    import os from 'node:os'
    import { syncBuiltinESMExports } from 'node:module'
    os.userInfo = () => { throw new Error('uv_os_get_passwd returned ENOENT') }
    syncBuiltinESMExports()`
  const NODE_OPTIONS = `--import=data:text/javascript,${encodeURIComponent(nameless)}`
  t.match(await run(PACKAGE_ROOT, ['--version'], { NODE_OPTIONS }), { code: 0, output: /^\d+\.\d+\.\d+\n$/ })
})

// ── The Dockerfile ──

t.test('the image is a slim one of node, without development dependencies', async (t) => {
  t.match(base.argument('FROM'), /^node:\$\{NODE_VERSION\}-trixie-slim AS base$/)
  t.match(image.argument('FROM'), /^base AS /)
  const installs = [...base.all('RUN'), ...image.all('RUN')].filter((command) => command.includes('npm'))
  t.equal(installs.length, 1)
  t.match(installs[0], /^npm ci .*--omit=dev.* && node docker\/prune\.mjs node_modules$/, 'pruned in the same layer')
  t.match(stages[1]!.all('RUN').at(-1), / && node docker\/prune\.mjs dist$/)
  t.notMatch(installs[0], /optional/, "argon2's prebuilt binaries are optional dependencies")
})

t.test('the image serves on 8080 as a user that is not root', async (t) => {
  t.equal(image.all('USER').at(-1), 'node')
  const afterUser = image.instructions.slice(image.instructions.findLastIndex(([word]) => word === 'USER') + 1).map(([word]) => word)
  t.notOk(afterUser.some((word) => ['USER', 'RUN', 'COPY'].includes(word)), 'and nothing is made after that')
  t.same(JSON.parse(image.argument('ENTRYPOINT')), ['node', 'dist/src/main.js'])
  t.same(JSON.parse(image.argument('CMD')), ['serve'])
  t.same(imageEnvironment(), { NODE_ENV: 'production', HOST: '0.0.0.0' })
  t.equal(image.argument('EXPOSE'), defaultOf('PORT'))
  t.equal(image.argument('STOPSIGNAL'), 'SIGTERM')
  t.match(image.argument('HEALTHCHECK'), /--timeout=\d+s .*\/livez.*AbortSignal\.timeout\(\d+\)/)
})

t.test('the image says what it is, as package.json does', async (t) => {
  const { bin, description, version } = JSON.parse(read('package.json')) as { bin: object; description: string; version: string }
  const [title] = Object.keys(bin)
  const labels = [...image.argument('LABEL').matchAll(/org\.opencontainers\.image\.(\w+)="([^"]*)"/g)].map(([, label, value]) => [label, value])
  t.same(Object.fromEntries(labels), { title, description, version })
})

t.test('nothing reaches the build but what is copied', async (t) => {
  const [everything, ...kept] = read('.dockerignore').split('\n').filter((line) => line && !line.startsWith('#'))
  t.equal(everything, '*')
  const copied = stages.flatMap((stage) => stage.all('COPY')).filter((copy) => !copy.startsWith('--from='))
  const sources = copied.flatMap((copy) => copy.split(' ').slice(0, -1))
  t.same(kept.sort(), sources.map((source) => `!${source}`).sort())
})

// ── The compose file ──

t.test('each service waits for what it needs, and the database for nothing that a new version changes', async (t) => {
  const conditions = Object.fromEntries(
    services.map(([name, { depends_on = {} }]) => [name, Object.fromEntries(Object.entries<any>(depends_on).map(([other, { condition }]) => [other, condition]))]),
  )
  t.same(conditions, {
    postgres: {},
    secrets: {},
    migrate: { postgres: 'service_healthy', secrets: 'service_completed_successfully' },
    'mecha-keys': { postgres: 'service_healthy', migrate: 'service_completed_successfully' },
    'mecha-keys-2': { postgres: 'service_healthy', migrate: 'service_completed_successfully' },
  })
})

t.test('the image is built once, by the service that all others with it wait for, and never pulled', async (t) => {
  t.same(services.filter(([, { build }]) => build).map(([name, { build }]) => [name, build]), [['secrets', '.']])
  for (const [name, { pull_policy }] of ours) t.equal(pull_policy, 'never', name)
  const waitsForSecrets = (name: string): boolean =>
    name === 'secrets' || Object.keys(compose.services[name].depends_on ?? {}).some(waitsForSecrets)
  t.same(ours.map(([name]) => name).filter((name) => !waitsForSecrets(name)), [])
})

t.test('our containers can neither write to their own files nor gain a privilege', async (t) => {
  t.same(ours.map(([name]) => name), ['secrets', 'migrate', 'mecha-keys', 'mecha-keys-2'])
  for (const [name, service] of ours) {
    t.match(service, { read_only: true, tmpfs: '/tmp', cap_drop: ['ALL'], security_opt: ['no-new-privileges:true'] }, name)
    for (const widening of ['user', 'privileged', 'cap_add', 'network', 'pid']) t.notOk(widening in service, `${name} ${widening}`)
  }
})

t.test('every name in the environment is a setting, or of postgres', async (t) => {
  for (const [name, { environment = {}, image: from }] of services) {
    const known = from === 'mecha-keys' ? settingNames() : POSTGRES
    t.same(Object.keys(environment).filter((one) => !known.includes(one)), [], name)
  }
})

t.test('every file that a service is told of is a secret that is made, in a volume that it can only read', async (t) => {
  for (const [name, { environment = {}, volumes }] of ours.filter(([one]) => one !== 'secrets'))
    for (const [setting, path] of Object.entries<string>(environment)) {
      if (!setting.endsWith('_FILE')) continue
      t.ok(volumes.includes(`service-secrets:${dirname(path)}:ro`), `${name} ${setting}`)
      t.ok(SECRETS.includes(basename(path)), `${name} ${setting}`)
    }
  t.same(compose.services.secrets.volumes, ['service-secrets:/secrets/service'])
  t.same(compose.services.secrets.command, ['/secrets/service'])
  t.match(image.all('RUN').at(-1), /^install -d -o node -g node -m 0700 \/secrets\/service$/, 'which the image prepares')
})

t.test("the service that is reached from outside has its secrets and not the owner's socket", async (t) => {
  const { ports, ...service } = compose.services['mecha-keys']
  t.same(service.volumes, [`service-secrets:${SECRETS_FOLDER}:ro`])
  t.same(ports, ['127.0.0.1:8080:8080'])
  t.same(compose.services['mecha-keys-2'], { ...service, profiles: ['two'], ports: ['127.0.0.1:8081:8080'] }, 'nor has the second one, which is not started unless it is asked for')
  t.same(services.filter(([, { ports }]) => ports).map(([name]) => name), ['mecha-keys', 'mecha-keys-2'], 'and nothing else is reached')
})

t.test('the database is PostgreSQL 18, kept in a volume, and healthy when it answers over TCP', async (t) => {
  const { postgres } = compose.services
  t.equal(postgres.image, 'postgres:18')
  t.ok(postgres.volumes.includes('postgres-data:/var/lib/postgresql'))
  t.match(postgres.healthcheck.test, ['CMD', 'pg_isready', '--quiet', '--host=127.0.0.1'])
})

t.test('a container is given the time that it takes to drain', async (t) => {
  const { DRAIN_DELAY, SHUTDOWN_TIMEOUT } = loadConfig({ ...environmentOf('mecha-keys', ''), ...withoutFiles() })
  t.ok(graceSeconds() * 1000 > (DRAIN_DELAY + SHUTDOWN_TIMEOUT) * 1000 + LAST_STEPS_MS)
  const [, override] = /```yaml\n(services:\n[^`]*)```/.exec(read('docs/deployment.md'))!
  const longer = Object.entries<any>(parse(override!).services)
  t.same(longer.map(([name]) => name), ['mecha-keys', 'mecha-keys-2'])
  for (const [name, { environment, stop_grace_period }] of longer)
    t.ok(Number.parseInt(stop_grace_period) * 1000 > (environment.DRAIN_DELAY + SHUTDOWN_TIMEOUT) * 1000 + LAST_STEPS_MS, `${name}, where a balancer has to notice`)
})

// ── The page about it ──

t.test('every setting, file and command that the page on deployment names is real', async (t) => {
  const page = read('docs/deployment.md')
  const known = [...settingNames(), ...POSTGRES, 'NAME_FILE', 'NODE_OPTIONS', 'BUILDAH_FORMAT']
  const names = [...page.matchAll(/\b[A-Z]{2,}(?:_[A-Z]+)+\b/g)].map(([name]) => name)
  t.ok(names.length > 20)
  t.same(names.filter((name) => !known.includes(name)), [])
  const { output: help } = await run(PACKAGE_ROOT, ['--help'], {})
  const commands = [...page.matchAll(/(?:mecha-keys|main\.js|run --rm [a-z]\S*) ([a-z]+(?:-[a-z]+)*)(?= |`|$)/gm)].map((match) => match[1]!)
  t.ok(commands.includes('migrate'))
  t.same(commands.filter((command) => !new RegExp(`^  ${command}\\b`, 'm').test(help)), [])
  const secrets = [...page.matchAll(/`service\/([a-z.-]+)`/g)].map((match) => match[1]!)
  t.same([...new Set(secrets)].sort(), SECRETS)
})

// ── Helpers ──

function read(file: string): string {
  return readFileSync(join(PACKAGE_ROOT, file), 'utf8')
}

interface Stage {
  readonly instructions: readonly (readonly [word: string, argument: string])[]
  readonly all: (word: string) => string[]
  /** The argument of the one instruction of that word. */
  readonly argument: (word: string) => string
}

/** The stages of a Dockerfile, each from its FROM on. */
function stagesOf(dockerfile: string): Stage[] {
  const lines = dockerfile.replace(/^#.*\n/gm, '').replace(/\\\n\s*/g, '').split('\n').filter(Boolean)
  const groups: [string, string][][] = []
  for (const line of lines) {
    const [, word, argument] = /^([A-Z]+) (.*)$/.exec(line)!
    if (word === 'FROM') groups.push([])
    groups.at(-1)?.push([word!, argument!])
  }
  return groups.map((instructions) => {
    const all = (word: string) => instructions.filter(([one]) => one === word).map(([, argument]) => argument)
    return {
      instructions,
      all,
      argument: (word) => {
        const [argument, ...more] = all(word)
        if (argument === undefined || more.length > 0) throw new Error(`the stage has ${argument ? 'several' : 'no'} ${word}`)
        return argument
      },
    }
  })
}

/** A folder that holds what the image does: what the Dockerfile copies, and the packages that it installs, without what it prunes. */
function layOut(): string {
  const root = temporaryFolder(t)
  for (const copy of [...base.all('COPY'), ...image.all('COPY')]) {
    const words = copy.split(' ').filter((word) => !word.startsWith('--'))
    const to = words.pop()!
    for (const from of words) cpSync(join(PACKAGE_ROOT, posix.relative('/app', posix.resolve('/app', from))), join(root, to.endsWith('/') ? join(to, from) : to), { recursive: true })
  }
  const { packages } = JSON.parse(read('package-lock.json')) as { packages: Record<string, { dev?: true }> }
  const production = Object.keys(packages).filter((path) => /^node_modules\/(@[^/]+\/)?[^/]+$/.test(path) && !packages[path]!.dev)
  for (const path of production.filter((one) => existsSync(join(PACKAGE_ROOT, one)))) copyLinked(join(PACKAGE_ROOT, path), join(root, path))
  execFileSync(process.execPath, [join(root, 'docker', 'prune.mjs'), join(root, 'node_modules'), join(root, 'dist')])
  return root
}

/** Copies a folder by links to its files: what is removed of the copy is not removed of it. */
function copyLinked(from: string, to: string): void {
  mkdirSync(to, { recursive: true })
  for (const entry of readdirSync(from, { withFileTypes: true })) {
    const [source, target] = [join(from, entry.name), join(to, entry.name)]
    if (entry.isDirectory()) copyLinked(source, target)
    else linkOrCopy(source, target)
  }
}

function linkOrCopy(source: string, target: string): void {
  try {
    linkSync(source, target)
  } catch {
    // The folder for temporary files may be on another disk.
    copyFileSync(source, target)
  }
}

/** Gives the generated logins a server: the tests', under names of this test's own, which end with it. */
function pointAt(t: Test, database: TestDatabase, folder: string): void {
  const server = new URL(database.owner)
  const suffix = randomBytes(4).toString('hex')
  for (const file of ['database-url', 'runtime-database-url'])
    rewrite(join(folder, file), (content) => {
      const url = new URL(content)
      url.username += `_${suffix}`
      t.teardown(() => sql`DROP ROLE IF EXISTS ${sql.id(url.username)}`.execute(database.db))
      return Object.assign(url, { hostname: server.hostname, port: server.port, pathname: server.pathname }).href
    })
}

function rewrite(file: string, change: (content: string) => string): void {
  chmodSync(file, 0o600)
  writeFileSync(file, change(readFileSync(file, 'utf8')))
  chmodSync(file, 0o400)
}

/** What a service's container has in its environment, with the generated secrets where they are on this machine. */
function environmentOf(name: string, folder: string): Environment {
  const given = Object.entries<string>(compose.services[name].environment)
  return { ...imageEnvironment(), ...Object.fromEntries(given.map(([setting, value]) => [setting, onThisMachine(value, folder)])) }
}

function imageEnvironment(): Record<string, string> {
  return Object.fromEntries(image.argument('ENV').split(' ').map((pair) => pair.split('=')))
}

function onThisMachine(value: string, folder: string): string {
  return value.startsWith(`${SECRETS_FOLDER}/`) ? join(folder, basename(value)) : value
}

/** For settings that have nothing to do with a file. */
function withoutFiles(): Environment {
  return Object.fromEntries(Object.keys(compose.services['mecha-keys'].environment).filter((name) => name.endsWith('_FILE')).map((name) => [name, undefined]))
}

function settingNames(): string[] {
  return settingsTable().flatMap(({ name, secret }) => (secret ? [name, `${name}_FILE`] : [name]))
}

function defaultOf(setting: string): string | undefined {
  return settingsTable().find(({ name }) => name === setting)!.default
}

function graceSeconds(): number {
  return Number(/^(\d+)s$/.exec(compose.services['mecha-keys'].stop_grace_period)![1])
}

function makeSecrets(folder: string) {
  return finished(spawn(process.execPath, [join(PACKAGE_ROOT, 'docker', 'make-secrets.mjs'), folder], { env: {} }))
}

/** Runs a command of the command line that stands in `root`. */
function run(root: string, args: string[], environment: Environment) {
  return finished(spawnIn(root, args, environment, { timeout: 60_000, killSignal: 'SIGKILL' }))
}

function spawnIn(root: string, args: string[], environment: Environment, bound: { timeout?: number; killSignal?: NodeJS.Signals } = {}) {
  return spawn(process.execPath, ['dist/src/main.js', ...args], { cwd: root, env: { ...environment }, ...bound })
}

async function startServing(t: Test, root: string, environment: Environment) {
  const child = spawnIn(root, ['serve'], environment)
  t.teardown(async () => {
    if (child.exitCode === null && child.signalCode === null) {
      const exited = once(child, 'exit')
      child.kill('SIGKILL')
      await exited
    }
  })
  const lines: string[] = []
  child.stderr.on('data', (data) => lines.push(String(data)))
  const port = await new Promise<number>((resolve, reject) => {
    createInterface({ input: child.stdout }).on('line', (line) => {
      lines.push(line)
      const found = /listening at http:\/\/127\.0\.0\.1:(\d+)/.exec(line)?.[1]
      if (found) resolve(Number(found))
    })
    child.once('exit', () => reject(new Error(`the service ended before it listened:\n${lines.join('\n')}`)))
  })
  return { child, port, log: () => lines.join('\n') }
}

/** As `docker compose stop` does it: SIGTERM, and no more patience than the compose file has. */
async function stop(child: ChildProcess): Promise<number | null> {
  const exited = once(child, 'exit', { signal: AbortSignal.timeout(graceSeconds() * 1000) })
  child.kill('SIGTERM')
  const [code] = (await exited) as [number | null]
  return code
}

async function exitOf(child: ChildProcess): Promise<number | null> {
  const [code] = (await once(child, 'exit')) as [number | null]
  return code
}

/** What a process wrote, both streams, and its exit code. */
async function finished(child: ReturnType<typeof spawnIn>): Promise<{ code: number | null; output: string }> {
  child.stdin.end()
  const [stdout, stderr, code] = await Promise.all([text(child.stdout), text(child.stderr), exitOf(child)])
  return { code, output: stdout + stderr }
}

function temporaryFolder(t: Test): string {
  const folder = mkdtempSync(join(tmpdir(), 'mecha-keys-deploy-'))
  t.teardown(() => rmSync(folder, { recursive: true, force: true }))
  return folder
}

function filesOf(folder: string): string[] {
  return readdirSync(folder, { recursive: true, encoding: 'utf8' }).filter((file) => statSync(join(folder, file)).isFile()).sort()
}

function contentsOf(folder: string): Record<string, string> {
  return Object.fromEntries(filesOf(folder).map((file) => [file, readFileSync(join(folder, file), 'utf8')]))
}
