#!/usr/bin/env node
/** The command line. */

import { userInfo } from 'node:os'
import { text } from 'node:stream/consumers'
import { Command, InvalidArgumentError, Option } from 'commander'
import { signOperatorToken } from './auth/operators.js'
import { SCOPES, type Scope } from './auth/scopes.js'
import { call, Refused, Unreachable } from './client.js'
import { describeConfig, loadConfig, processEnvironment, requireDatabase, requireRoots, suspectNames, type Settings } from './config.js'
import { createGateway } from './control/gateways.js'
import type { ControlParts, GatewayCaller } from './control/parts.js'
import { revoke } from './control/revoke.js'
import { rootSecretsStatus } from './control/root-secrets.js'
import { listKeys } from './control/store.js'
import { ensureLogin } from './db/logins.js'
import { migrate } from './db/migrate.js'
import { isDatabaseOutage, openDatabase } from './db/pool.js'
import { ConfigError, Problem } from './errors.js'
import { createMetrics } from './http/metrics.js'
import { newId, parsePublicId, publicId } from './key/id.js'
import { statusAt } from './key/status.js'
import { parseToken, redactTokens } from './key/token.js'
import { isLocal, keptSecret, startLocal, withLocalFiles } from './local.js'
import { VERSION } from './package-root.js'
import { renderWalk } from './walk.js'

/** Exit codes; the last two are sysexits.h's EX_UNAVAILABLE and EX_CONFIG. */
const EXIT = { no: 1, usage: 2, unavailable: 69, config: 78 } as const
/** The organization and the operator of the walk that `npm start` prints. */
const WALK_ORG = 'acmecorp'
const DAY = 86_400

const program = new Command('mecha-keys')
  .description('Issues, lists, rotates, revokes and verifies Mecha keys. Settings come from the environment: see the README.')
  .version(VERSION)
  // Whatever is refused may be a key that was pasted into the wrong place.
  .configureOutput({ outputError: (message, write) => write(redactTokens(message)) })
  .exitOverride((error) => {
    throw error
  })

program.command('serve').description('serve the planes that PLANES names').action(runServe)
program
  .command('migrate')
  .description("bring the database's tables up to date, as their owner")
  .option('--with-logins', "also create the planes' logins that DATABASE_URL and RUNTIME_DATABASE_URL name")
  .action(runMigrate)
program.command('config').description('print the settings in effect, secrets masked').option('--json').action(runConfig)
program
  .command('operator-token')
  .description('sign an operator token with the built-in issuer')
  .requiredOption('--org <org>', 'organization')
  .option('--scope <scopes...>', `any of ${SCOPES.join(', ')}; all of them by default`, [...SCOPES])
  .option('--crew <crews...>', 'narrow the token to some crews')
  .option('--subject <name>', 'who it is for, as the audit trail names them', userName())
  .option('--ttl <seconds>', 'how long it is valid', positive, 3600)
  .action(runOperatorToken)

const gateway = program.command('gateway').description('gateway credentials, straight in the database')
const ofWhom = () => [
  new Option('--org <org>', "the organization whose keys the gateway may verify").conflicts('allOrganizations'),
  new Option('--all-organizations', 'a gateway that may verify the keys of every organization'),
]
withOptions(gateway.command('create').requiredOption('--name <name>').option('--json'), ofWhom()).action(runGatewayCreate)
withOptions(gateway.command('list').option('--json'), ofWhom()).action(runGatewayList)
withOptions(gateway.command('revoke').argument('<id>').option('--reason <reason>'), ofWhom()).action(runGatewayRevoke)

program
  .command('root-secrets')
  .description('root secrets')
  .command('status')
  .description('which root secrets living keys still need')
  .option('--json')
  .action(runRootSecretsStatus)

program
  .command('issue')
  .description('issue a key; prints the plaintext, once')
  .argument('<mecha>', 'name^crew')
  .option('--name <name>')
  .option('--scope <scopes...>')
  .option('--expires-in <seconds>', 'life in seconds', positive)
  .option('--idempotency-key <key>', 'a repeat with the same one makes no second key')
  .option('--json')
  .action(runIssue)
program
  .command('list')
  .description('list keys, newest first')
  .option('--mecha <mecha>')
  .addOption(new Option('--status <status>').choices(['active', 'disabled', 'expired', 'revoked']))
  .option('--json')
  .action(runList)
program
  .command('revoke')
  .description('revoke a key, for good')
  .argument('<id>', 'key_…')
  .option('--reason <reason>')
  .option('--json')
  .action(runRevoke)
program
  .command('verify')
  .description('verify the key on standard input, or in MECHA_KEY; exits with 0 if it is valid and 1 if not')
  .option('--mecha <mecha>')
  .option('--scope <scopes...>')
  .option('--json')
  .action(runVerify)
program
  .command('inspect')
  .description('offline: is what stands on standard input, or in MECHA_KEY, a well-formed key, and of which id?')
  .option('--json')
  .action(runInspect)

await program.parseAsync().catch(fail)

// ── Commands ──

async function runServe(): Promise<void> {
  const environment = processEnvironment()
  // Half of the time that a command takes to start, and only this one needs it.
  const { serve } = await import('./server.js')
  if (!isLocal(environment)) return serve(loadConfig(environment), { environment })
  // A wrong setting is told before a database is started for it.
  loadConfig(withLocalFiles(environment))
  const local = await startLocal(environment)
  try {
    const config = loadConfig(local.environment)
    await migrateDatabase(config, true)
    await serve(config, {
      environment,
      onListening: async (url) => void process.stdout.write(await walkOf(config, url)),
      onClosed: () => local.database.stop(),
    })
  } catch (error) {
    await local.database.stop()
    throw error
  }
}

async function walkOf(config: Settings, url: string): Promise<string> {
  const operatorToken = await signOperatorToken(config, { org: WALK_ORG, scopes: SCOPES, subject: userName(), ttlSeconds: DAY })
  const gatewayCredential = await keptSecret(processEnvironment(), 'gateway-credential', {
    isGood: (credential) =>
      call({ MECHA_KEYS_URL: url }, { method: 'POST', path: '/v1/verify', body: { key: '' }, credential }).then(() => true, () => false),
    make: () => withControlParts(config, async (parts) => (await createGateway(parts, commandLine(WALK_ORG), 'npm start')).plaintext),
  })
  return renderWalk({ url, operatorToken, gatewayCredential })
}

async function runMigrate(options: { withLogins?: true }): Promise<void> {
  await withDatabaseSettings(async (config) => {
    const applied = await migrateDatabase(config, options.withLogins ?? false)
    process.stdout.write(applied.length > 0 ? `applied ${applied.join(', ')}\n` : 'nothing to apply\n')
  })
}

async function migrateDatabase(config: Settings, withLogins: boolean): Promise<string[]> {
  const url = requireDatabase(config, 'MIGRATE_DATABASE_URL', 'DATABASE_URL')
  // A migration may take its time; waiting for a lock that the service holds may not.
  const db = openDatabase({ url, size: 1, timeoutMs: 600_000, name: 'mecha-keys migrate' })
  try {
    const applied = await migrate(db)
    if (withLogins) {
      await ensureLogin(db, 'control', requireDatabase(config, 'DATABASE_URL'))
      if (config.RUNTIME_DATABASE_URL) await ensureLogin(db, 'runtime', config.RUNTIME_DATABASE_URL)
    }
    return applied
  } finally {
    await db.destroy()
  }
}

async function runConfig({ json }: { json?: true }): Promise<void> {
  const environment = processEnvironment()
  const effective = isLocal(environment) ? withLocalFiles(environment) : environment
  loadConfig(effective)
  const settings = describeConfig(effective)
  const width = Math.max(...Object.keys(settings).map((name) => name.length))
  print(json, settings, () =>
    Object.entries(settings).map(([name, { value, from }]) => `${name.padEnd(width)}  ${value ?? '-'}  (${from})`),
  )
  for (const { name, meant } of suspectNames(environment))
    process.stderr.write(`${name} is no setting of mecha-keys${meant ? `: did you mean ${meant}?` : ''}\n`)
}

interface TokenOptions {
  org: string
  scope: string[]
  crew?: string[]
  subject: string
  ttl: number
}

async function runOperatorToken({ org, scope, crew, subject, ttl }: TokenOptions): Promise<void> {
  const scopes = scope.flatMap((one) => one.split(/[ ,]+/))
  const unknown = scopes.find((one) => !(SCOPES as readonly string[]).includes(one))
  if (unknown !== undefined) throw new InvalidArgumentError(`--scope ${unknown} is none of ${SCOPES.join(', ')}`)
  const environment = processEnvironment()
  const config = loadConfig(isLocal(environment) ? withLocalFiles(environment) : environment)
  const claims = { org, scopes: scopes as Scope[], subject, ttlSeconds: ttl, ...(crew && { crews: crew }) }
  process.stdout.write(`${await signOperatorToken(config, claims)}\n`)
}

interface OfWhom {
  org?: string
  allOrganizations?: true
}

async function runGatewayCreate(options: OfWhom & { name: string; json?: true }): Promise<void> {
  const caller = commandLine(orgOf(options))
  await withDatabaseSettings((config) =>
    withControlParts(config, async (parts) => {
      const { key, plaintext } = await createGateway(parts, caller, options.name)
      const id = publicId('gateway', key.id)
      print(options.json, { id, name: options.name, org_id: key.org_id, plaintext_key: plaintext }, () => [plaintext])
    }),
  )
}

async function runGatewayList(options: OfWhom & { json?: true }): Promise<void> {
  const { orgId } = commandLine(orgOf(options))
  await withDatabaseSettings((config) =>
    withControlParts(config, async ({ db }) => {
      const { keys, now } = await listKeys(db, { orgId, crews: undefined }, { kind: 'gateway', limit: 1000 })
      const gateways = keys.map((key) => ({ id: publicId('gateway', key.id), name: key.name, org_id: key.org_id, status: statusAt(key, now) }))
      print(options.json, { gateways }, () => gateways.map(({ id, status, name }) => `${id}  ${status}  ${name}`))
    }),
  )
}

async function runGatewayRevoke(id: string, options: OfWhom & { reason?: string }): Promise<void> {
  const uuid = parsePublicId('gateway', id)
  if (!uuid) throw new InvalidArgumentError('<id> must be a gateway id: gw_…')
  const caller = commandLine(orgOf(options))
  await withDatabaseSettings((config) =>
    withControlParts(config, async (parts) => {
      await revoke(parts, caller, 'gateway', uuid, options.reason)
      process.stdout.write(`revoked ${id}\n`)
    }),
  )
}

async function runRootSecretsStatus({ json }: { json?: true }): Promise<void> {
  await withDatabaseSettings((config) =>
    withControlParts(config, async ({ db, roots }) => {
      const status = await rootSecretsStatus(db, roots)
      print(json, { root_secrets: status }, () =>
        status.map((root) => {
          const next = { newest: 'makes keys', older: root.droppable ? 'may be dropped' : 'still needed', missing: 'NEEDED AND NOT CONFIGURED' }
          return `${root.id}  ${root.role}  tags ${root.tagged} living keys, peppers ${root.peppered}  ${next[root.role]}`
        }),
      )
    }),
  )
}

async function runIssue(mecha: string, options: { name?: string; scope?: string[]; expiresIn?: number; idempotencyKey?: string; json?: true }): Promise<void> {
  const config = loadConfig(processEnvironment())
  const { name, scope: scopes, expiresIn: expires_in, idempotencyKey } = options
  const answer = (await call(config, {
    method: 'POST',
    path: '/v1/keys',
    body: { mecha, name, scopes, expires_in },
    credential: needed(config, 'OPERATOR_TOKEN'),
    ...(idempotencyKey !== undefined && { headers: { 'idempotency-key': idempotencyKey } }),
  })) as { key: { id: string }; plaintext_key: string }
  // The plaintext alone on standard output: export MECHA_KEY=$(mecha-keys issue …)
  if (!options.json) process.stderr.write(`${answer.key.id}\n`)
  print(options.json, answer, () => [answer.plaintext_key])
}

async function runList(options: { mecha?: string; status?: string; json?: true }): Promise<void> {
  const config = loadConfig(processEnvironment())
  const credential = needed(config, 'OPERATOR_TOKEN')
  const keys: { id: string; mecha: string; status: string; name: string | null }[] = []
  let cursor: string | null = ''
  while (cursor !== null) {
    const query: URLSearchParams = new URLSearchParams({ limit: '100', ...(cursor && { cursor }), ...(options.mecha && { mecha: options.mecha }), ...(options.status && { status: options.status }) })
    const page = (await call(config, { method: 'GET', path: `/v1/keys?${query.toString()}`, credential })) as { keys: typeof keys; next_cursor: string | null }
    keys.push(...page.keys)
    cursor = page.next_cursor
  }
  print(options.json, { keys }, () => keys.map(({ id, status, mecha, name }) => `${id}  ${status.padEnd(8)}  ${mecha}  ${name ?? ''}`))
}

async function runRevoke(id: string, { reason, json }: { reason?: string; json?: true }): Promise<void> {
  const config = loadConfig(processEnvironment())
  if (parseToken(id)) throw new InvalidArgumentError('<id> is a plaintext key, which is now in this shell\'s history. Revoke it by its id: mecha-keys inspect says which')
  const path = `/v1/keys/${encodeURIComponent(id)}/revoke`
  const key = (await call(config, { method: 'POST', path, body: { reason }, credential: needed(config, 'OPERATOR_TOKEN') })) as { revoked_at: string }
  print(json, key, () => [`revoked ${id} at ${key.revoked_at}`])
}

async function runVerify(options: { mecha?: string; scope?: string[]; json?: true }): Promise<void> {
  const config = loadConfig(processEnvironment())
  const body = { key: await presentedKey(config), mecha: options.mecha, scopes: options.scope }
  const credential = needed(config, 'GATEWAY_CREDENTIAL')
  const answer = (await call(config, { method: 'POST', path: '/v1/verify', body, credential })) as
    | { valid: true; key_id: string; mecha: { handle: string } }
    | { valid: false; code: string }
  print(options.json, answer, () => [answer.valid ? `valid: ${answer.key_id} of ${answer.mecha.handle}` : `not valid: ${answer.code}`])
  if (!answer.valid) process.exitCode = EXIT.no
}

async function runInspect({ json }: { json?: true }): Promise<void> {
  const token = parseToken(await presentedKey(loadConfig(processEnvironment())))
  const answer = token
    ? { well_formed: true, prefix: token.prefix, key_id: publicId('mecha', token.id), gateway_id: publicId('gateway', token.id) }
    : { well_formed: false }
  print(json, answer, () => [token ? `a well-formed key with the prefix ${token.prefix}: ${publicId('mecha', token.id)}` : 'not a well-formed key'])
  if (!token) process.exitCode = EXIT.no
}

// ── What commands share ──

/** Runs with the settings of a database: the deployment's, or the embedded one, which is started if it is not up. */
async function withDatabaseSettings(run: (config: Settings) => Promise<void>): Promise<void> {
  const environment = processEnvironment()
  if (!isLocal(environment)) return run(loadConfig(environment))
  const local = await startLocal(environment, { share: true })
  try {
    await run(loadConfig(local.environment))
  } finally {
    await local.database.stop()
  }
}

async function withControlParts<T>(config: Settings, run: (parts: ControlParts) => Promise<T>): Promise<T> {
  const roots = requireRoots(config)
  const db = openDatabase({ url: requireDatabase(config, 'DATABASE_URL'), size: 1, timeoutMs: config.DATABASE_TIMEOUT * 1000, name: 'mecha-keys command line' })
  try {
    return await run({ db, config, roots, metrics: createMetrics({ process: false }) })
  } finally {
    await db.destroy()
  }
}

/** Whoever runs the command line, for the audit trail. */
function commandLine(orgId: string | null): GatewayCaller {
  return { actor: `cli:${userName()}`, requestId: newId(), address: 'local', orgId, crews: undefined }
}

/** A container may run as a user id that has no name. */
function userName(): string {
  try {
    return userInfo().username
  } catch {
    return `uid-${process.getuid?.()}`
  }
}

function orgOf({ org, allOrganizations }: OfWhom): string | null {
  if (org !== undefined && org !== '') return org
  if (allOrganizations) return null
  throw new InvalidArgumentError('say --org <org>, or --all-organizations')
}

function needed(config: Settings, name: 'OPERATOR_TOKEN' | 'GATEWAY_CREDENTIAL'): string {
  const value = config[name]
  if (!value) throw new ConfigError(`${name} or ${name}_FILE must be set`)
  return value
}

/** Never an argument: arguments are seen by every user of the machine, and kept in the shell's history. */
async function presentedKey(config: Settings): Promise<string> {
  const key = process.stdin.isTTY ? config.MECHA_KEY : (await text(process.stdin)).trim() || config.MECHA_KEY
  if (!key) throw new ConfigError('give the key on standard input, or in MECHA_KEY')
  return key
}

function print(json: boolean | undefined, value: object, lines: () => string[]): void {
  process.stdout.write(json ? `${JSON.stringify(value, null, 2)}\n` : lines().map((line) => `${line}\n`).join(''))
}

function positive(value: string): number {
  if (!/^[1-9]\d{0,9}$/.test(value)) throw new InvalidArgumentError('must be a whole number of seconds, 1 or more')
  return Number(value)
}

function withOptions(command: Command, options: Option[]): Command {
  for (const option of options) command.addOption(option)
  return command
}

/** One readable line and an exit code, whatever went wrong. */
function fail(error: Error & { code?: string; exitCode?: number }): void {
  // Commander has already printed its own: help, the version, or what is wrong with the arguments.
  if (error.code?.startsWith('commander.') && !(error instanceof InvalidArgumentError)) {
    process.exitCode = error.exitCode === 0 ? 0 : EXIT.usage
    return
  }
  process.stderr.write(`mecha-keys: ${redactTokens(error.message)}\n`)
  if (error instanceof InvalidArgumentError) process.exitCode = EXIT.usage
  else if (error instanceof ConfigError) process.exitCode = EXIT.config
  else if (error instanceof Unreachable || isDatabaseOutage(error)) process.exitCode = EXIT.unavailable
  else if (error instanceof Refused || error instanceof Problem) process.exitCode = EXIT.no
  else process.exitCode = 70
}
