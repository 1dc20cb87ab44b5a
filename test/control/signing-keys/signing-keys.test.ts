/** Signing keys: the first one, rotation with overlap, root secrets, and who may touch them. */

import { randomBytes } from 'node:crypto'
import { createLocalJWKSet, decodeProtectedHeader, jwtVerify } from 'jose'
import { sql } from 'kysely'
import t, { type Test } from 'tap'
import { maintainSigningKeys, rotateSigningKeys } from '../../../src/control/signing-keys/signing-keys.js'
import { freeStatusListIndexes } from '../../../src/control/signing-keys/store.js'
import { openDatabase, openPool } from '../../../src/db/pool.js'
import { deriveRoot, rootsOf } from '../../../src/credentials/roots.js'
import { KEEP, LEAD, makeSigningKey } from '../../../src/credentials/signing-key.js'
import { Clock } from '../../../src/clock.js'
import { Keyring } from '../../../src/runtime/oauth/keyring.js'
import { findSigningKeys } from '../../../src/runtime/oauth/store.js'
import { emptyDatabase, type TestDatabase } from '../../helpers/database.js'
import { eventually } from '../../helpers/eventually.js'
import { exchange, exchanged, introspect } from '../../helpers/oauth.js'
import { run } from '../../helpers/process.js'
import { startService, testEnvironment, type Service } from '../../helpers/service.js'
import { layWire } from '../../helpers/wire.js'

const PUBLIC_URL = 'https://keys.example.com'
const author = { actor: 'test', requestId: 'test', address: 'local' }

const rowsOf = ({ db }: TestDatabase) => db.selectFrom('signing_keys').selectAll().orderBy('signs_from').execute()
const jwksOf = async (service: Service) => (await service.call('GET', '/.well-known/jwks.json')).body
/** As if so many seconds had passed since all that happened to signing keys. */
const letPass = ({ db }: TestDatabase, seconds: number) =>
  db.updateTable('signing_keys').set({ signs_from: sql<Date>`signs_from - make_interval(secs => ${seconds})` }).execute()

/** A replica that has just read what there is, beside the first service. */
function another(t: Test, { config, database }: Service, planes = 'runtime'): Promise<Service> {
  return startService(t, { PLANES: planes, ROOT_SECRETS: config.ROOT_SECRETS!.join(), PUBLIC_URL }, database)
}

t.test('the control plane makes the first key at its start, and one only, however many start at once', async (t) => {
  const service = await startService(t)
  const rows = await rowsOf(service.database)
  t.equal(rows.length, 1)
  t.match(rows[0], { alg: 'EdDSA', created_by: 'service', root: deriveRoot(service.config.ROOT_SECRETS![0]!).id })
  const { db } = await emptyDatabase()
  t.equal((await db.selectFrom('signing_keys').selectAll().execute()).length, 0)
  const roots = rootsOf([randomBytes(32).toString('hex')])
  await Promise.all(Array.from({ length: 8 }, () => maintainSigningKeys({ db, roots }, author)))
  t.equal((await db.selectFrom('signing_keys').selectAll().execute()).length, 1)
})

t.test('503: a runtime plane without a signing key says so, and finds the key that is made later', async (t) => {
  const database = await emptyDatabase()
  const secrets = randomBytes(32).toString('base64url')
  const runtime = await startService(t, { PLANES: 'runtime', ROOT_SECRETS: secrets }, database)
  for (const path of ['/.well-known/jwks.json', '/.well-known/token-status'])
    t.match(await runtime.call('GET', path), { status: 503, headers: { 'retry-after': '5' }, body: { code: 'signing_key_unavailable' } }, path)
  const control = await startService(t, { PLANES: 'control', ROOT_SECRETS: secrets }, database)
  t.match(await exchange(runtime, (await control.issue()).plaintext_key), { status: 200 })
})

t.test('rotation: published before it signs, and the one before verifies until what it signed has expired', async (t) => {
  const service = await startService(t, { PUBLIC_URL })
  const { database } = service
  const { plaintext_key } = await service.issue()
  const kidOf = async (replica: Service) => decodeProtectedHeader(await exchanged(replica, plaintext_key)).kid
  const kidsOf = async (replica: Service) => (await jwksOf(replica)).keys.map((key: any) => key.kid)
  const [first] = await rowsOf(database)
  const early = await exchanged(service, plaintext_key)

  const views = await rotateSigningKeys({ db: database.db, roots: rootsOf(service.config.ROOT_SECRETS!) }, author, {})
  t.match(views, [{ kid: first!.kid, role: 'signing' }, { role: 'next', alg: 'EdDSA' }])
  const next = views[1]!.kid
  const noticed = await another(t, service)
  t.same(await kidsOf(noticed), [first!.kid, next], 'it is published at once')
  t.equal(await kidOf(noticed), first!.kid, 'and does not sign yet')

  await letPass(database, LEAD)
  const after = await another(t, service)
  t.equal(await kidOf(after), next, 'now it does')
  t.same(await kidsOf(after), [first!.kid, next])
  await t.resolves(jwtVerify(early, createLocalJWKSet(await jwksOf(after)), { issuer: PUBLIC_URL }), 'what the one before signed is verified')
  await t.resolves(jwtVerify(await exchanged(after, plaintext_key), createLocalJWKSet(await jwksOf(noticed))), 'by whoever has fetched the keys since')
  const gateway = await service.gateway()
  t.match(await introspect(after, gateway, early), { active: true })

  await letPass(database, KEEP - 60)
  t.same(await kidsOf(await another(t, service)), [first!.kid, next], 'as long as anything of it could be alive')
  await letPass(database, 120)
  const late = await another(t, service)
  t.same(await kidsOf(late), [next], 'and then it is gone')
  await t.rejects(jwtVerify(early, createLocalJWKSet(await jwksOf(late))), { code: 'ERR_JWKS_NO_MATCHING_KEY' })
  t.same(await introspect(late, gateway, early), { active: false })
  t.equal((await rowsOf(database)).length, 2)
  await another(t, service, 'control')
  t.same((await rowsOf(database)).map(({ kid }) => kid), [next], 'the next start of a control plane deletes it')
})

t.test('rotation of compromised keys: the new one signs at once, and nothing of the others is believed', async (t) => {
  const service = await startService(t, { PUBLIC_URL })
  const { plaintext_key } = await service.issue()
  const stolen = await exchanged(service, plaintext_key)
  const gone = (await rowsOf(service.database)).map(({ kid }) => kid)
  const views = await rotateSigningKeys({ db: service.database.db, roots: rootsOf(service.config.ROOT_SECRETS!) }, author, { compromised: true })
  t.match(views, [{ role: 'signing' }])
  t.equal(views.length, 1)
  const replica = await another(t, service)
  t.match(await replica.call('GET', '/.well-known/jwks.json'), { headers: { 'cache-control': 'public, max-age=300' } }, 'gateways ask again within five minutes')
  await t.rejects(jwtVerify(stolen, createLocalJWKSet(await jwksOf(replica))), { code: 'ERR_JWKS_NO_MATCHING_KEY' })
  t.same(await introspect(replica, await service.gateway(), stolen), { active: false })
  t.equal(decodeProtectedHeader(await exchanged(replica, plaintext_key)).kid, views[0]!.kid)
  const event = await service.database.db.selectFrom('events').selectAll().where('type', '=', 'signing_key.created').orderBy('position', 'desc').executeTakeFirstOrThrow()
  t.match(event, { actor: 'test', org_id: null, key_id: null, data: { kid: views[0]!.kid, compromised: gone } })
})

t.test('a replica that is running notices a rotation', async (t) => {
  const service = await startService(t)
  const { db } = service.database
  const roots = rootsOf(service.config.ROOT_SECRETS!)
  const keyring = new Keyring({ read: () => findSigningKeys(db), roots, reloadMs: 1, clock: new Clock(), log: service.app.log })
  t.equal((await keyring.keys()).published.length, 1)
  await rotateSigningKeys({ db, roots }, author, {})
  await eventually(async () => (await keyring.keys()).published.length === 2)
  await letPass(service.database, LEAD)
  await eventually(async () => (await keyring.keys()).signer.kid === (await rowsOf(service.database))[1]!.kid)
})

t.test('keys are read again only when they are old enough, and serve on while the database is away', async (t) => {
  const service = await startService(t)
  const wire = await layWire(t, service.database.runtime)
  const db = openDatabase({ url: wire.through(service.database.runtime), size: 1, timeoutMs: 2000, name: 'test' })
  t.teardown(() => db.destroy())
  let reads = 0
  const read = () => (reads++, findSigningKeys(db))
  const parts = { roots: rootsOf(service.config.ROOT_SECRETS!), clock: new Clock(), log: service.app.log }
  const lasting = new Keyring({ read, ...parts, reloadMs: 60_000 })
  await Promise.all(Array.from({ length: 10 }, () => lasting.keys()))
  await lasting.keys()
  t.equal(reads, 1)
  const eager = new Keyring({ read, ...parts, reloadMs: 0 })
  const { signer } = await eager.keys()
  wire.cut()
  for (let i = 0; i < 5; i++) t.equal((await eager.keys()).signer.kid, signer.kid)
  wire.silence()
  t.equal((await eager.keys()).signer.kid, signer.kid, 'and while it is silent')
  await t.rejects(new Keyring({ read, ...parts, reloadMs: 0 }).keys(), 'a replica that has none cannot sign')
})

t.test('a row that somebody wrote or changed by hand neither signs nor is published', async (t) => {
  const service = await startService(t)
  const { database, config } = service
  const { plaintext_key } = await service.issue()
  const foreign = makeSigningKey('EdDSA', deriveRoot(randomBytes(32).toString('hex')))
  const [own] = rootsOf(config.ROOT_SECRETS!)
  const times = { created_at: new Date(), created_by: 'mallory', signs_from: new Date(0) }
  await database.db.insertInto('signing_keys').values([{ ...foreign, ...times, root: own.id }, { ...makeSigningKey('EdDSA', deriveRoot('y'.repeat(32))), ...times }]).execute()
  const replica = await another(t, service)
  const [real] = await database.db.selectFrom('signing_keys').select('kid').where('created_by', '=', 'service').execute()
  t.same((await jwksOf(replica)).keys.map((key: any) => key.kid), [real!.kid])
  t.equal(decodeProtectedHeader(await exchanged(replica, plaintext_key)).kid, real!.kid)
  t.match(replica.logs(), /is not as it was made/)
  // One that says that it signs now: the others do what they did, and the log is told once.
  await database.db.updateTable('signing_keys').set({ signs_from: new Date() }).where('kid', '=', foreign.kid).execute()
  const after = await another(t, service)
  const early = await exchanged(after, plaintext_key)
  t.equal(decodeProtectedHeader(early).kid, real!.kid)
  await t.resolves(jwtVerify(early, createLocalJWKSet(await jwksOf(after))))
  // However long it stays: for the control plane it is not there either, and ends no other.
  await letPass(database, KEEP + LEAD)
  const control = await another(t, service, 'control')
  t.same((await rowsOf(database)).map(({ kid }) => kid).sort(), [foreign.kid, real!.kid].sort(), 'it ended the one that is of no use to anybody, and no other')
  t.match(control.logs(), /a signing key is not as it was made/)
  const late = await another(t, service)
  t.equal(decodeProtectedHeader(await exchanged(late, plaintext_key)).kid, real!.kid)
  t.match(await rotateSigningKeys({ db: database.db, roots: rootsOf(config.ROOT_SECRETS!) }, author, { compromised: true }), [{ role: 'signing' }], 'an operator can be rid of it')
})

t.test('a signing key of a root secret that a replica was not given: what came before signs while everybody publishes it', async (t) => {
  const [old, young] = [randomBytes(32).toString('hex'), randomBytes(32).toString('hex')]
  const service = await startService(t, { ROOT_SECRETS: old, PUBLIC_URL })
  const { database } = service
  const { plaintext_key } = await service.issue()
  const [first] = await rowsOf(database)
  const next = makeSigningKey('EdDSA', deriveRoot(young))
  await database.db.insertInto('signing_keys').values({ ...next, created_at: new Date(), created_by: 'service', signs_from: new Date() }).execute()
  let reads = 0
  const lines: string[] = []
  const log = { error: (line: string) => lines.push(line) } as unknown as typeof service.app.log
  const read = () => (reads++, findSigningKeys(database.db))
  const keyring = new Keyring({ read, roots: rootsOf([old]), reloadMs: 0, clock: new Clock(), log })
  t.match(await keyring.keys(), { signer: { kid: first!.kid }, published: [{ kid: first!.kid }] })
  await eventually(async () => (await keyring.keys(), reads > 2))
  t.same(lines, [`signing key ${next.kid} is sealed under the root secret ${next.root}, which is not configured`], 'told once')
  await letPass(database, LEAD - 60)
  t.match(await (await another(t, service)).call('GET', '/.well-known/jwks.json'), { status: 200 })
  t.equal(decodeProtectedHeader(await exchanged(await another(t, service), plaintext_key)).kid, first!.kid)
  await letPass(database, 120)
  t.match(await exchange(await another(t, service), plaintext_key), { status: 503, body: { code: 'signing_key_unavailable', error: 'temporarily_unavailable' } }, 'what it signs now would outlive it')
})

t.test('a replica that has opened a key keeps it when it is sealed under a root secret of the next roll-out', async (t) => {
  const [old, young] = [randomBytes(32).toString('hex'), randomBytes(32).toString('hex')]
  const service = await startService(t, { ROOT_SECRETS: old, PUBLIC_URL })
  const { db } = service.database
  let reads = 0
  const keyring = new Keyring({ read: () => (reads++, findSigningKeys(db)), roots: rootsOf([old]), reloadMs: 0, clock: new Clock(), log: service.app.log })
  const { signer } = await keyring.keys()
  await maintainSigningKeys({ db, roots: rootsOf([young, old]) }, author)
  t.match(await rowsOf(service.database), [{ root: deriveRoot(young).id }])
  const before = reads
  await eventually(async () => (await keyring.keys(), reads > before + 1))
  t.equal((await keyring.keys()).signer.kid, signer.kid)
})

t.test('a root secret is needed for as long as a signing key is sealed under it, and the next start moves that', async (t) => {
  const [old, young] = [randomBytes(32).toString('hex'), randomBytes(32).toString('hex')]
  const before = await startService(t, { ROOT_SECRETS: old, PUBLIC_URL })
  const { database } = before
  const { plaintext_key } = await before.issue()
  const early = await exchanged(before, plaintext_key)
  const status = async (secrets: string) => {
    const ended = await run(t, ['root-secrets', 'status', '--json'], { env: { ...testEnvironment(database), ROOT_SECRETS: secrets } })
    return JSON.parse(ended.stdout).root_secrets
  }
  await before.call('POST', '/v1/mechas/sales%5Eacmecorp/revoke-keys', { token: await before.token() })
  t.match(await status(`${young},${old}`), [{ role: 'newest', sealed: 0 }, { role: 'older', tagged: 0, peppered: 0, sealed: 1, droppable: false }])

  const after = await startService(t, { ROOT_SECRETS: `${young},${old}`, PUBLIC_URL }, database)
  t.match(await rowsOf(database), [{ root: deriveRoot(young).id }])
  t.match(await status(`${young},${old}`), [{ role: 'newest', sealed: 1 }, { role: 'older', sealed: 0, droppable: true }])
  await t.resolves(jwtVerify(early, createLocalJWKSet(await jwksOf(after))), 'it is the same key')
  const dropped = await startService(t, { ROOT_SECRETS: young, PUBLIC_URL }, database)
  await t.resolves(jwtVerify(early, createLocalJWKSet(await jwksOf(dropped))))
  const forgetful = await startService(t, { ROOT_SECRETS: old, PUBLIC_URL }, database)
  t.match(await forgetful.call('GET', '/.well-known/jwks.json'), { status: 503, body: { code: 'signing_key_unavailable' } })
  t.match(await rowsOf(database), [{ root: deriveRoot(young).id }], 'and a control plane that cannot open it leaves it as it is')
  t.match(forgetful.logs(), /a signing key cannot be opened/)
})

t.test('the command line rotates and lists', async (t) => {
  const service = await startService(t)
  const { database, config } = service
  const env = { ...testEnvironment(database), ROOT_SECRETS: config.ROOT_SECRETS!.join() }
  const rotated = await run(t, ['signing-keys', 'rotate', '--alg', 'ES256'], { env })
  t.match(rotated, { code: 0, stdout: /^[\w-]{43} {2}EdDSA {2}signing {2}signs since \S+\n[\w-]{43} {2}ES256 {2}next {5}published, signs from \S+\n$/ })
  const listed = await run(t, ['signing-keys', 'list', '--json'], { env })
  t.match(JSON.parse(listed.stdout).signing_keys, [{ alg: 'EdDSA', role: 'signing', created_by: 'service' }, { alg: 'ES256', role: 'next', created_by: /^cli:/ }])
  t.match((await rowsOf(database)).map(({ sealed }) => sealed), [Buffer, Buffer])
  await letPass(database, LEAD)
  const replica = await another(t, service)
  const jwt = await exchanged(replica, (await service.issue()).plaintext_key)
  t.match(decodeProtectedHeader(jwt), { alg: 'ES256' })
  await t.resolves(jwtVerify(jwt, createLocalJWKSet(await jwksOf(replica)), { algorithms: ['ES256'] }))
  t.match(await introspect(replica, await service.gateway(), jwt), { active: true })
  t.match(await run(t, ['signing-keys', 'rotate', '--alg', 'HS256'], { env }), { code: 2 })
  t.match((await run(t, ['signing-keys', 'list', '--json'], { env })).stdout, /"role": "past"/)
})

t.test('indexes of the status list are freed by statements that each look at a part of them', async (t) => {
  const service = await startService(t)
  const { db, control } = service.database
  const ids = await Promise.all(['a', 'b', 'c'].map(async (name) => (await service.issue({ mecha: `${name}^acmecorp` })).key.id as string))
  const rows = await db.selectFrom('keys').select(['id']).where('kind', '=', 'mecha').orderBy('created_at').execute()
  t.equal(rows.length, ids.length)
  const indexes = [0, 12_345, 20_001]
  for (const [place, { id }] of rows.entries()) await db.insertInto('token_status').values({ idx: indexes[place]!, key_id: id }).execute()
  await db.updateTable('keys').set({ expires_at: sql<Date>`now() - make_interval(secs => ${KEEP + 60})` }).where('id', '!=', rows[1]!.id).execute()
  const statements: string[] = []
  const pool = openPool({ url: control, size: 1, timeoutMs: 10_000, name: 'test', onQuery: ({ query }) => statements.push(query.sql) })
  t.teardown(() => pool.db.destroy())
  await freeStatusListIndexes(pool.db, new Date())
  t.same(await db.selectFrom('token_status').select(['idx', 'key_id']).orderBy('idx').execute(), indexes.map((idx, place) => ({ idx, key_id: place === 1 ? rows[1]!.id : null })))
  t.equal(statements.filter((text) => text.includes('UPDATE token_status')).length, 3)
})
