/** The status list, as gateways read it: by hand with zlib and jose, and by a library that knows nothing of this service. */

import { inflateSync } from 'node:zlib'
import { getListFromStatusListJWT, getStatusListFromJWT } from '@sd-jwt/jwt-status-list'
import { createLocalJWKSet, decodeJwt, jwtVerify } from 'jose'
import { sql } from 'kysely'
import t, { type Test } from 'tap'
import { KEEP } from '../../../src/credentials/signing-key.js'
import { maintainSigningKeys } from '../../../src/control/signing-keys/signing-keys.js'
import { rootsOf } from '../../../src/credentials/roots.js'
import { parseToken } from '../../../src/credentials/token.js'
import { createDatabase } from '../../helpers/database.js'
import { eventually } from '../../helpers/eventually.js'
import { exchanged } from '../../helpers/oauth.js'
import { fresh, startService, type Answer, type Service } from '../../helpers/service.js'
import { layWire } from '../../helpers/wire.js'

const PUBLIC_URL = 'https://keys.example.com'
const PATH = '/.well-known/token-status'
const author = { actor: 'test', requestId: 'test', address: 'local' }

interface ListClaims {
  readonly ttl: number
  readonly status_list: { readonly bits: number; readonly lst: string }
}

/** Where an exchanged JWT says that its status is. */
function referenceIn(jwt: string): { idx: number; uri: string } {
  return decodeJwt<{ status: { status_list: { idx: number; uri: string } } }>(jwt).status.status_list
}

/** The status of a JWT, by the two readings, which have to agree. */
async function statusOf(t: Test, service: Service, jwt: string): Promise<number> {
  const answer = await service.call('GET', PATH)
  if (answer.status !== 200) throw new Error(`the list answered ${answer.status}: ${answer.text}`)
  const keys = createLocalJWKSet((await service.call('GET', '/.well-known/jwks.json')).body)
  const { payload } = await jwtVerify<ListClaims>(answer.text, keys, { typ: 'statuslist+jwt', issuer: PUBLIC_URL, subject: PUBLIC_URL + PATH })
  const { idx, uri } = referenceIn(jwt)
  t.equal(uri, payload.sub, 'it is the list that the JWT names')
  const { bits, lst } = payload.status_list
  const byte = inflateSync(Buffer.from(lst, 'base64url'))[Math.floor((idx * bits) / 8)]!
  const byHand = (byte >> ((idx * bits) % 8)) & (2 ** bits - 1)
  t.same(getStatusListFromJWT(jwt), { idx, uri })
  t.equal(getListFromStatusListJWT(answer.text).getStatus(idx), byHand)
  return byHand
}
const VALID = 0
const INVALID = 1
const SUSPENDED = 2

t.test('a key that ends is in the list, whatever ended it, and others are not', async (t) => {
  const service = await startService(t, { PUBLIC_URL })
  await fresh(service)
  const token = await service.token()
  const { db } = service.database
  const make = async (mecha = 'sales^acmecorp') => {
    const { key, plaintext_key } = await service.issue({ mecha })
    return { id: key.id as string, plaintext_key, jwt: await exchanged(service, plaintext_key) }
  }
  const [good, revoked, disabled, rotated, expired, deleted] = [await make(), await make(), await make(), await make(), await make('old^acmecorp'), await make()]
  const all = [good, revoked, disabled, rotated, expired, deleted]
  for (const { jwt } of all) t.equal(await statusOf(t, service, jwt), VALID)
  t.same(all.map(({ jwt }) => referenceIn(jwt).idx), [0, 1, 2, 3, 4, 5])
  await service.call('POST', `/v1/keys/${revoked.id}/revoke`, { token })
  await service.call('PATCH', `/v1/keys/${disabled.id}`, { token, body: { enabled: false } })
  await service.call('POST', `/v1/keys/${rotated.id}/rotate`, { token, body: { overlap_seconds: 0 } })
  await db.updateTable('keys').set({ expires_at: new Date() }).where('mecha', '=', 'old^acmecorp').execute()
  const uuid = parseToken(deleted.plaintext_key)!.id
  await db.deleteFrom('key_usage').where('key_id', '=', uuid).execute()
  await db.deleteFrom('keys').where('id', '=', uuid).execute()
  for (const [{ jwt }, status] of [[revoked, INVALID], [disabled, SUSPENDED], [rotated, INVALID], [expired, INVALID], [deleted, INVALID], [good, VALID]] as const)
    await eventually(async () => (await statusOf(t, service, jwt)) === status)
  await service.call('PATCH', `/v1/keys/${disabled.id}`, { token, body: { enabled: true } })
  await eventually(async () => (await statusOf(t, service, disabled.jwt)) === VALID)
})

t.test('a key that was never exchanged has no place, and one that was has the same on every replica', async (t) => {
  const first = await startService(t, { PUBLIC_URL })
  const second = await startService(t, { PLANES: 'runtime', ROOT_SECRETS: first.config.ROOT_SECRETS!.join(), PUBLIC_URL }, first.database)
  const gateway = await first.gateway()
  for (let i = 0; i < 3; i++) await first.verify((await first.issue()).plaintext_key, {}, gateway)
  const places = () => first.database.db.selectFrom('token_status').selectAll().orderBy('idx').execute()
  t.same(await places(), [])
  const keys = await Promise.all(Array.from({ length: 6 }, async () => (await first.issue()).plaintext_key))
  const jwts = await Promise.all(keys.flatMap((key) => [first, second, first, second].map((service) => exchanged(service, key))))
  const byKey = keys.map((_, i) => new Set(jwts.slice(4 * i, 4 * i + 4).map((jwt) => referenceIn(jwt).idx)))
  for (const found of byKey) t.equal(found.size, 1)
  t.same([...new Set(byKey.flatMap((found) => [...found]))].sort(), [0, 1, 2, 3, 4, 5])
  t.equal((await places()).length, 6)
})

t.test('a place is used again when nothing that was exchanged for its key can be alive', async (t) => {
  const service = await startService(t, { PUBLIC_URL })
  const { db } = service.database
  const parts = { db, roots: rootsOf(service.config.ROOT_SECRETS!) }
  const keys = [await service.issue(), await service.issue({ mecha: 'old^acmecorp' })]
  for (const { plaintext_key } of keys) await exchanged(service, plaintext_key)
  const end = (seconds: number) => db.updateTable('keys').set({ expires_at: sql<Date>`now() - make_interval(secs => ${seconds})` }).where('mecha', '=', 'old^acmecorp').execute()
  const places = async () => (await db.selectFrom('token_status').selectAll().orderBy('idx').execute()).map(({ key_id }) => key_id)
  const before = await places()
  t.equal(before.filter(Boolean).length, 2)
  await end(KEEP - 60)
  await maintainSigningKeys(parts, author)
  t.same(await places(), before)
  await end(KEEP + 60)
  await maintainSigningKeys(parts, author)
  t.same(await places(), [before[0], null])
  const next = await exchanged(service, (await service.issue()).plaintext_key)
  t.equal(referenceIn(next).idx, 1)
  t.equal(await statusOf(t, service, next), VALID)
})

t.test('the list may be kept as long as it says, and asked for again by its tag', async (t) => {
  const service = await startService(t, { PUBLIC_URL, REVOCATION_MAX_STALENESS: '10s' })
  await fresh(service)
  const answer = await service.call('GET', PATH)
  t.match(answer, { status: 200, headers: { 'content-type': 'application/statuslist+jwt', 'cache-control': 'public, max-age=5', etag: /^"[\w-]{43}"$/ } })
  const { iat, exp, ...rest } = decodeJwt<ListClaims>(answer.text)
  t.match(rest, { iss: PUBLIC_URL, sub: PUBLIC_URL + PATH, ttl: 10, status_list: { bits: 2 } })
  t.equal(exp! - iat!, 20)
  t.equal((await service.call('GET', PATH)).text, answer.text, 'while nothing changes it is the same')
  const etag = String(answer.headers['etag'])
  for (const tag of [etag, `"x", ${etag}`, `W/${etag}`, '*']) t.match(await service.call('GET', PATH, { headers: { 'if-none-match': tag } }), { status: 304, text: '', headers: { etag } }, tag)
  t.match(await service.call('GET', PATH, { headers: { 'if-none-match': '"x"' } }), { status: 200 })
  t.equal(inflateSync(Buffer.from(decodeJwt<ListClaims>(answer.text).status_list.lst, 'base64url')).length, 256, 'a short list does not tell how short')
})

t.test('what everybody may read, a browser may read from any origin, and a cache knows what it depends on', async (t) => {
  const service = await startService(t, { PUBLIC_URL, CORS_ORIGINS: 'https://console.example.com' })
  const etag = String((await service.call('GET', PATH)).headers['etag'])
  for (const path of [PATH, '/.well-known/jwks.json', '/.well-known/oauth-authorization-server'])
    for (const headers of [{}, { origin: 'https://anywhere.example' }] as Record<string, string>[]) {
      const answer = await service.call('GET', path, { headers })
      t.match(answer, { status: 200, headers: { 'access-control-allow-origin': '*' } }, path)
      t.notOk('access-control-allow-credentials' in answer.headers)
    }
  for (const headers of [{}, { 'if-none-match': etag }, { accept: 'application/statuslist+cwt' }] as Record<string, string>[])
    t.match((await service.call('GET', PATH, { headers })).headers, { 'access-control-allow-origin': '*', vary: 'Accept' })
  for (const path of ['/v1/introspect', '/v1/token', '/v1/revoke-token'])
    t.notOk('access-control-allow-origin' in (await service.call('POST', path, { headers: { origin: 'https://console.example.com' } })).headers, path)
})

t.test('406: a list is given in the form that is asked for, or not', async (t) => {
  const service = await startService(t, { PUBLIC_URL })
  for (const accept of [undefined, 'application/statuslist+jwt', 'application/*', '*/*', 'application/statuslist+cwt;q=0.9, application/statuslist+jwt;q=0.1', 'text/html, */*;q=0.1', 'APPLICATION/StatusList+JWT'])
    t.match(await service.call('GET', PATH, accept === undefined ? {} : { headers: { accept } }), { status: 200, headers: { 'content-type': 'application/statuslist+jwt' } }, accept ?? 'none')
  for (const accept of ['application/statuslist+cwt', 'application/json', 'text/*', 'application/statuslist+jwt;q=0', 'application/jwt'])
    t.match(await service.call('GET', PATH, { headers: { accept } }), {
      status: 406, headers: { 'cache-control': 'no-store', 'content-type': /^application\/problem\+json/ }, body: { code: 'not_acceptable', detail: /application\/statuslist\+jwt/ },
    }, accept)
})

t.test('a list of many places is small, and right at both ends', async (t) => {
  const service = await startService(t, { PUBLIC_URL })
  const { db } = service.database
  const { key, plaintext_key } = await service.issue()
  await sql`INSERT INTO token_status (idx, key_id) SELECT n, NULL FROM generate_series(0, 99999) AS n`.execute(db)
  await sql`UPDATE token_status SET key_id = gen_random_uuid() WHERE idx < 99999`.execute(db)
  const jwt = await exchanged(service, plaintext_key)
  t.equal(referenceIn(jwt).idx, 99_999)
  t.equal(await statusOf(t, service, jwt), VALID)
  const list = getListFromStatusListJWT((await service.call('GET', PATH)).text)
  t.same([0, 1, 99_998, 99_999, 100_000].map((idx) => list.getStatus(idx)), [INVALID, INVALID, INVALID, VALID, VALID])
  await service.call('POST', `/v1/keys/${key.id}/revoke`, { token: await service.token() })
  await eventually(async () => (await statusOf(t, service, jwt)) === INVALID)
  t.ok((await service.call('GET', PATH)).text.length < 2000)
})

t.test('503: past the bound no list is given that nobody vouches for, and a true one when the database is back', async (t) => {
  const direct = await createDatabase(t)
  const wire = await layWire(t, direct.control)
  const bound = { REVOCATION_MAX_STALENESS: '1s', DATABASE_TIMEOUT: '1s', PUBLIC_URL }
  const service = await startService(t, bound, { ...direct, control: wire.through(direct.control), runtime: wire.through(direct.runtime) })
  await fresh(service)
  const { plaintext_key } = await service.issue()
  const jwt = await exchanged(service, plaintext_key)
  t.equal(await statusOf(t, service, jwt), VALID)
  wire.cut()
  await direct.db.updateTable('keys').set({ revoked_at: new Date(), revoked_by: 'psql' }).where('kind', '=', 'mecha').execute()
  const revokedAt = performance.now()
  let answer: Answer
  await eventually(async () => (answer = await service.call('GET', PATH)).status !== 200)
  t.ok(performance.now() - revokedAt < 1000, 'the old list was given for no longer than the bound')
  t.match(answer!, { status: 503, headers: { 'retry-after': '1' }, body: { code: 'database_unavailable' } })
  wire.restore()
  await eventually(async () => (answer = await service.call('GET', PATH)).status === 200)
  t.equal(await statusOf(t, service, jwt), INVALID, 'its first list knows of the revocation')
})
