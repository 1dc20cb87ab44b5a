import { randomBytes } from 'node:crypto'
import { createServer, type AddressInfo } from 'node:net'
import { once } from 'node:events'
import { sql } from 'kysely'
import t, { type Test } from 'tap'
import { createDatabase } from '../helpers/database.js'
import { eventually } from '../helpers/eventually.js'
import { urlFor } from '../helpers/server.js'
import { run, start, type Ended } from '../helpers/process.js'
import { startService, testEnvironment } from '../helpers/service.js'

/** A service as it is deployed: one process on a database that others have set up. */
const database = await createDatabase(t)
const deployment = testEnvironment(database, { ROOT_SECRETS: newSecret() })
const service = start(t, ['serve'], { env: { ...deployment, PORT: '0' } })
const url = (await service.line(/listening at (http:\/\/[\d.:]+)/))[1]!
const operator = { MECHA_KEYS_URL: url, OPERATOR_TOKEN: told(await run(t, ['operator-token', '--org', 'acme'], { env: deployment })) }
const gateway = { MECHA_KEYS_URL: url, GATEWAY_CREDENTIAL: told(await run(t, ['gateway', 'create', '--org', 'acme', '--name', 'edge'], { env: deployment })) }

t.test('an operator token is signed for an organization, with all scopes or those asked for', async (t) => {
  const token = (...args: string[]) => run(t, ['operator-token', ...args], { env: deployment })
  const [narrow, unknown, orgless, endless] = await Promise.all([
    token('--org', 'acme', '--scope', 'keys:read', '--crew', 'acmecorp', '--subject', 'robot', '--ttl', '60'),
    token('--org', 'acme', '--scope', 'keys:everything'), token(), token('--org', 'acme', '--ttl', '0'),
  ])
  t.match(claims(operator.OPERATOR_TOKEN), { org_id: 'acme', scope: /keys:issue.*audit:read/ })
  const held = claims(narrow.stdout.trim())
  t.match(held, { org_id: 'acme', scope: 'keys:read', crews: ['acmecorp'], sub: 'robot' })
  t.equal(Number(held['exp']) - Number(held['iat']), 60)
  t.equal((await fetch(`${url}/v1/keys?mecha=sales%5Eacmecorp`, { headers: { authorization: `Bearer ${narrow.stdout.trim()}` } })).status, 200)
  refused(t, unknown, 2, /--scope keys:everything is none of keys:issue/)
  refused(t, orgless, 2, /required option '--org <org>' not specified/)
  refused(t, endless, 2, /whole number of seconds/)
})

t.test('a gateway credential is created, listed and revoked, for one organization or for all', async (t) => {
  const cli = (...args: string[]) => run(t, ['gateway', ...args], { env: deployment })
  const [one, all] = (await Promise.all([cli('create', '--org', 'globex', '--name', 'door', '--json'), cli('create', '--all-organizations', '--name', 'core', '--json')])).map(json)
  t.match(one, { id: /^gw_/, org_id: 'globex', name: 'door', plaintext_key: /^mgw_/ })
  t.match(all, { id: /^gw_/, org_id: null, name: 'core', plaintext_key: /^mgw_/ })

  const [listed, ofAll, foreign, notAnId, nobody, both] = await Promise.all([
    cli('list', '--org', 'globex'), cli('list', '--all-organizations', '--json'), cli('revoke', one.id, '--org', 'acme'),
    cli('revoke', one.plaintext_key, '--org', 'globex'), cli('list'), cli('list', '--org', 'globex', '--all-organizations'),
  ])
  t.equal(listed.stdout, `${one.id}  active  door\n`)
  t.match(json(ofAll).gateways.map(({ id }: { id: string }) => id), [all.id])
  refused(t, foreign, 1, /not_found/)
  refused(t, notAnId, 2, /must be a gateway id/)
  refused(t, nobody, 2, /--org <org>, or --all-organizations/)
  refused(t, both, 2, /cannot be used with option/)

  t.equal(told(await cli('revoke', one.id, '--org', 'globex', '--reason', 'moved out')), `revoked ${one.id}`)
  const [after, verified] = await Promise.all([
    cli('list', '--org', 'globex', '--json'), run(t, ['verify'], { env: { MECHA_KEYS_URL: url, GATEWAY_CREDENTIAL: one.plaintext_key }, input: 'x' }),
  ])
  t.match(json(after), { gateways: [{ id: one.id, status: 'revoked' }] })
  refused(t, verified, 1, /unauthenticated/)
})

t.test('every gateway of an organization is listed, however many there are', async (t) => {
  const [template] = json(await run(t, ['gateway', 'create', '--org', 'many', '--name', 'first', '--json'], { env: deployment })).id.match(/^gw_\w+/)
  await sql`
    INSERT INTO keys (id, kind, org_id, name, hash, tag_root, pepper_root, created_at, created_by)
    SELECT gen_random_uuid(), kind, org_id, 'copy ' || n, hash, tag_root, pepper_root, created_at + n % 3 * interval '1 ms', created_by
    FROM keys, generate_series(1, 2100) AS n WHERE org_id = 'many'`.execute(database.db)
  const { gateways } = json(await run(t, ['gateway', 'list', '--org', 'many', '--json'], { env: deployment }))
  t.equal(gateways.length, 2101)
  t.equal(new Set(gateways.map(({ id }: { id: string }) => id)).size, 2101)
  t.ok(gateways.some(({ id }: { id: string }) => id === template))
})

t.test('a key is issued, verified, listed and revoked from scripts', async (t) => {
  const issued = await run(t, ['issue', 'sales^acmecorp', '--name', 'laptop', '--scope', 'orders:read', '--expires-in', '3600', '--idempotency-key', 'one'], { env: operator })
  t.equal(issued.code, 0)
  t.match(issued.stdout, /^mecha_\w+\n$/, 'the plaintext, and nothing else')
  t.match(issued.stderr, /^key_\w+\n$/, 'the id is for the person')
  const [plaintext, id] = [issued.stdout.trim(), issued.stderr.trim()]

  const verify = (args: string[], options: { input?: string; MECHA_KEY?: string }) =>
    run(t, ['verify', ...args], { env: { ...gateway, ...(options.MECHA_KEY && { MECHA_KEY: options.MECHA_KEY }) }, ...(options.input && { input: options.input }) })
  const [piped, inEnvironment, mismatch, scopeless, listed, repeated, echoed] = await Promise.all([
    verify([], { input: `${plaintext}\n` }),
    verify(['--mecha', 'sales^acmecorp', '--scope', 'orders:read', '--json'], { MECHA_KEY: plaintext }),
    verify(['--mecha', 'buyer^acmecorp'], { input: plaintext }),
    verify(['--scope', 'orders:write', '--json'], { input: plaintext }),
    run(t, ['list', '--mecha', 'sales^acmecorp', '--status', 'active'], { env: operator }),
    run(t, ['issue', 'sales^acmecorp', '--idempotency-key', 'other', '--json'], { env: operator }),
    run(t, ['revoke', plaintext], { env: operator }),
  ])
  t.match(piped, { code: 0, stdout: `valid: ${id} of sales^acmecorp\n`, stderr: '' })
  t.match(json(inEnvironment), { valid: true, key_id: id, scopes: ['orders:read'] })
  t.match(mismatch, { code: 1, stdout: 'not valid: mecha_mismatch\n' })
  t.match(scopeless.code, 1)
  t.match(JSON.parse(scopeless.stdout), { valid: false, code: 'insufficient_scope' })
  t.match(listed.stdout, `${id}  active    sales^acmecorp  laptop\n`)
  t.match(json(repeated), { key: { mecha: 'sales^acmecorp' }, plaintext_key: /^mecha_/ })
  t.equal(repeated.stderr, '')
  refused(t, echoed, 2, /is a plaintext key/)
  t.notOk((echoed.stdout + echoed.stderr).includes(plaintext), 'and it is not repeated')

  const revoked = await run(t, ['revoke', id, '--reason', 'lost laptop', '--json'], { env: operator })
  t.match(json(revoked), { id, status: 'revoked', revoke_reason: 'lost laptop' })
  const [dead, left, unknown] = await Promise.all([
    verify([], { input: plaintext }),
    run(t, ['list', '--json'], { env: operator }),
    run(t, ['revoke', 'key_00000000000000000000000000'], { env: operator }),
  ])
  t.match(dead, { code: 1, stdout: 'not valid: revoked\n' })
  t.match(json(left).keys.map((key: { status: string }) => key.status), ['active', 'revoked'])
  refused(t, unknown, 1, /not_found/)
  for (const text of [service.stdout(), listed.stdout, left.stdout, dead.stdout]) t.notOk(text.includes(plaintext), 'the plaintext stood in one answer')
})

t.test('inspect tells a key from a typo offline, and its id, and never its secret', async (t) => {
  const plaintext = told(await run(t, ['issue', 'buyer^acmecorp'], { env: operator }))
  const typo = plaintext.slice(0, -1) + (plaintext.endsWith('0') ? '1' : '0')
  const [good, asJson, bad, nothing] = await Promise.all([
    run(t, ['inspect'], { input: plaintext }), run(t, ['inspect', '--json'], { env: { MECHA_KEY: plaintext } }), run(t, ['inspect'], { input: typo }), run(t, ['inspect']),
  ])
  const [prefix, id, secret] = plaintext.split('_') as [string, string, string]
  t.equal(told(good), `a well-formed key with the prefix ${prefix}: key_${id}`)
  t.match(json(asJson), { well_formed: true, prefix, key_id: `key_${id}` })
  t.match(bad, { code: 1, stdout: 'not a well-formed key\n' })
  refused(t, nothing, 78, /standard input, or in MECHA_KEY/)
  for (const { stdout, stderr } of [good, asJson, bad]) t.notOk((stdout + stderr).includes(secret.slice(0, 43)), 'no secret')
})

t.test('the settings in effect are shown, with secrets masked and slips of the pen pointed out', async (t) => {
  const env = { ...deployment, KEY_MAX_TTL: '30d', KEY_DEFUALT_TTL: '1d' }
  const [lines, asJson] = await Promise.all([run(t, ['config'], { env }), run(t, ['config', '--json'], { env })])
  t.match(lines.stdout, /^KEY_MAX_TTL +30d {2}\(KEY_MAX_TTL\)$/m)
  t.match(json(asJson), { KEY_MAX_TTL: { value: '30d' }, ROOT_SECRETS: { value: '********', from: 'ROOT_SECRETS' }, PORT: { value: '8080', from: 'default' } })
  t.equal(lines.stderr, 'KEY_DEFUALT_TTL is no setting of mecha-keys: did you mean KEY_DEFAULT_TTL?\n')
  for (const name of ['ROOT_SECRETS', 'BUILTIN_ISSUER_KEY']) t.notOk((lines.stdout + asJson.stdout).includes(deployment[name]!), `${name} is masked`)
  for (const name of ['DATABASE_URL', 'RUNTIME_DATABASE_URL']) {
    const { password, host } = new URL(deployment[name]!)
    t.notOk((lines.stdout + asJson.stdout).includes(password), `the password in ${name} is masked`)
    t.match(json(asJson)[name].value, `:********@${host}/`, 'and where it leads is shown')
  }
})

t.test('root-secrets status says when an old root secret may be dropped', async (t) => {
  const [older, newer] = [newSecret(), newSecret()]
  const before = await startService(t, { ROOT_SECRETS: older })
  const { plaintext_key } = await before.issue()
  const after = await startService(t, { ROOT_SECRETS: `${newer},${older}` }, before.database)
  const status = async (ROOT_SECRETS: string, ...args: string[]) => run(t, ['root-secrets', 'status', ...args], { env: testEnvironment(before.database, { ROOT_SECRETS }) })

  const first = json(await status(`${newer},${older}`, '--json')).root_secrets
  t.match(first, [{ role: 'newest', tagged: 0, peppered: 0, droppable: false }, { role: 'older', tagged: 1, peppered: 1, droppable: false }])
  // The gateway that asks is made under the newest root secret, and counts.
  t.equal((await after.verify(plaintext_key)).valid, true)
  const verified = json(await status(`${newer},${older}`, '--json')).root_secrets
  t.match(verified, [{ id: first[0].id, tagged: 1, peppered: 2 }, { id: first[1].id, tagged: 1, peppered: 0, droppable: false }], 'its hash has moved, its tag cannot')

  await after.database.db.updateTable('keys').set({ revoked_at: sql`now()`, revoked_by: 'test' }).where('tag_root', '=', first[1].id).execute()
  const [droppable, missing] = await Promise.all([status(`${newer},${older}`), status(older)])
  t.match(told(droppable), `${first[1].id}  older  tags 0 living keys, peppers 0, seals 0 signing keys  may be dropped`)
  t.equal(missing.code, 1, 'a secret that is needed and not configured is no success')
  t.match(missing.stdout, `${first[0].id}  missing  tags 1 living keys, peppers 1, seals 1 signing keys  NEEDED AND NOT CONFIGURED`)
})

t.test('migrate sets an empty database up, once, with the logins of the planes', async (t) => {
  const empty = await createDatabase(t, { empty: true })
  const mark = randomBytes(4).toString('hex')
  const logins = ['control', 'runtime'].map((plane) => ({ name: `cli_${plane}_${mark}`, password: newSecret() }))
  const [control, runtime] = logins.map(({ name, password }) => urlFor(empty.owner, new URL(empty.owner).pathname.slice(1), `${name}:${password}`)) as [string, string]
  const env = testEnvironment(empty, { DATABASE_URL: control, RUNTIME_DATABASE_URL: runtime, MIGRATE_DATABASE_URL: empty.owner })
  t.teardown(async () => {
    for (const { name } of logins) await sql`DROP ROLE IF EXISTS ${sql.id(name)}`.execute(empty.db)
  })
  const early = await run(t, ['gateway', 'create', '--org', 'acme', '--name', 'early'], { env })
  t.not(early.code, 0, 'there is no such login yet')
  t.match(told(await run(t, ['migrate'], { env })), /^applied 0001/)
  t.equal(told(await run(t, ['migrate', '--with-logins'], { env })), 'nothing to apply')
  t.match(told(await run(t, ['gateway', 'create', '--org', 'acme', '--name', 'first'], { env })), /^mgw_/, 'the logins work')
  const served = start(t, ['serve'], { env: { ...env, PORT: '0' } })
  const at = (await served.line(/listening at (http:\/\/[\d.:]+)/))[1]!
  await eventually(async () => (await fetch(`${at}/readyz`)).status === 200)
})

t.test('a service on a database that was not migrated is not ready, and says what to do', async (t) => {
  const empty = await createDatabase(t, { empty: true })
  const served = start(t, ['serve'], { env: { ...testEnvironment(empty, { DATABASE_URL: empty.owner, RUNTIME_DATABASE_URL: empty.owner }), PORT: '0' } })
  const at = (await served.line(/listening at (http:\/\/[\d.:]+)/))[1]!
  const answer = await fetch(`${at}/readyz`)
  t.equal(answer.status, 503)
  t.match(await answer.json(), { ready: false, checks: { database_control: /run mecha-keys migrate/ } })
})

t.test('a wrong setting ends every command with one line and 78', async (t) => {
  const taken = createServer().listen(0, '127.0.0.1')
  await once(taken, 'listening')
  t.teardown(() => taken.close())
  const port = String((taken.address() as AddressInfo).port)
  const value = `hunter2-${newSecret()}`
  const { ROOT_SECRETS: _, ...rootless } = deployment
  const cases: [args: string[], env: Record<string, string | undefined>, line: RegExp][] = [
    [['serve'], { ...deployment, PORT: value }, /PORT must be a whole number/],
    [['serve'], { ...deployment, PORT: port }, new RegExp(`PORT ${port} on HOST 127.0.0.1 cannot be listened on \\(EADDRINUSE\\)`)],
    [['serve'], { ...deployment, BUILTIN_ISSUER: 'off' }, /no operator could ever authenticate/],
    [['serve'], { ...deployment, BUILTIN_ISSUER_KEY: `-----BEGIN PRIVATE KEY-----\n${value}` }, /BUILTIN_ISSUER_KEY/],
    [['serve'], rootless, /ROOT_SECRETS or ROOT_SECRETS_FILE must be set/],
    [['root-secrets', 'status'], { ...deployment, ROOT_SECRETS_FILE: '/nowhere' }, /are both set: keep one/],
    [['migrate'], { DATABASE_URL: value }, /DATABASE_URL must be a URL like postgres:/],
    [['config'], { DATABASE_URL_FILE: '/nowhere' }, /DATABASE_URL_FILE names a file that cannot be read \(ENOENT\)/],
    [['operator-token', '--org', 'acme'], { DATABASE_URL: database.control }, /BUILTIN_ISSUER/],
    [['issue', 'sales^acmecorp'], { MECHA_KEYS_URL: url }, /OPERATOR_TOKEN or OPERATOR_TOKEN_FILE must be set/],
    [['verify'], { MECHA_KEYS_URL: url, MECHA_KEY: value }, /GATEWAY_CREDENTIAL or GATEWAY_CREDENTIAL_FILE must be set/],
  ]
  for (const ended of await Promise.all(cases.map(async ([args, env, line]) => ({ args, line, ended: await run(t, args, { env }) })))) {
    refused(t, ended.ended, 78, ended.line)
    t.match(ended.ended.stderr, /^[^\n]+\n$/, `${ended.args.join(' ')}: one line`)
    t.notMatch(ended.ended.stderr + ended.ended.stdout, /hunter2/, 'the value is not repeated')
  }
})

t.test('what cannot be reached ends with one line and 69', async (t) => {
  const free = createServer().listen(0, '127.0.0.1')
  await once(free, 'listening')
  const { port } = free.address() as AddressInfo
  free.close()
  await once(free, 'close')
  const [service, gone] = await Promise.all([
    run(t, ['verify'], { env: { ...gateway, MECHA_KEYS_URL: `http://127.0.0.1:${port}` }, input: 'x' }),
    run(t, ['gateway', 'list', '--org', 'acme'], { env: { ...deployment, DATABASE_URL: `postgres://a:${newSecret()}@127.0.0.1:${port}/x` } }),
  ])
  refused(t, service, 69, /does not answer \(ECONNREFUSED\)/)
  refused(t, gone, 69, /ECONNREFUSED/)
  for (const { stderr } of [service, gone]) t.match(stderr, /^[^\n]+\n$/, 'one line')
})

t.test('the command line explains itself, and refuses what it does not know', async (t) => {
  const plaintext = told(await run(t, ['issue', 'buyer^acmecorp'], { env: operator }))
  const [help, ofCommand, version, unknown, option, pasted] = await Promise.all([
    run(t, ['--help']), run(t, ['gateway', 'create', '--help']), run(t, ['--version']), run(t, ['isue']), run(t, ['list', '--everything']), run(t, [plaintext]),
  ])
  t.match(told(help), /Usage: mecha-keys [^]*operator-token/)
  t.match(told(ofCommand), /--all-organizations/)
  t.match(told(version), /^\d+\.\d+\.\d+$/)
  refused(t, unknown, 2, /unknown command 'isue'/)
  refused(t, option, 2, /unknown option '--everything'/)
  refused(t, pasted, 2, /unknown command/)
  t.notOk(pasted.stderr.includes(plaintext), 'a key that was pasted is not repeated')
})

function newSecret(): string {
  return randomBytes(32).toString('base64url')
}

/** What a command that has to succeed wrote. */
function told({ code, stdout, stderr }: Ended): string {
  if (code !== 0) throw new Error(`ended with ${code}: ${stderr}`)
  return stdout.trim()
}

function json(ended: Ended): any {
  return JSON.parse(told(ended))
}

function refused(t: Test, { code, stdout, stderr }: Ended, expected: number, why: RegExp): void {
  t.match({ code, stdout, stderr }, { code: expected, stdout: '', stderr: why })
  t.notMatch(stderr, /\n {4}at |node:internal/, 'no stack')
}

function claims(token: string): Record<string, unknown> {
  return JSON.parse(Buffer.from(token.split('.')[1]!, 'base64url').toString()) as Record<string, unknown>
}
