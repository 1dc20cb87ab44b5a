/** Clocks that are set, and clocks that stand still: what is counted by them goes on, and nothing that is over comes back. */

import { decodeJwt } from 'jose'
import { sql } from 'kysely'
import t, { type Test } from 'tap'
import { ProvedTokens } from '../../src/control/operators/proved-tokens.js'
import { SigningKeyMaintenance } from '../../src/control/signing-keys/maintenance.js'
import { parsePublicId } from '../../src/credentials/id.js'
import { rootsOf } from '../../src/credentials/roots.js'
import { KEEP } from '../../src/credentials/signing-key.js'
import { createDatabase } from '../helpers/database.js'
import { steppable } from '../helpers/database-clock.js'
import { eventually } from '../helpers/eventually.js'
import { makeKey, startIssuer } from '../helpers/issuer.js'
import { exchanged, sendForm } from '../helpers/oauth.js'
import { startService } from '../helpers/service.js'

const HOUR = 3_600_000

t.test('a database whose clock is set back does not leave a time of use in the future', async (t) => {
  const database = await createDatabase(t)
  const clock = await steppable(database)
  await clock.step(3600)
  const service = await startService(t, { USAGE_FLUSH_INTERVAL: '1s' }, database)
  const { key, plaintext_key } = await service.issue()
  const read = async () => (await service.call('GET', `/v1/keys/${key.id}`, { token: await service.token() })).body
  await service.verify(plaintext_key)
  const ahead = (await read()).last_used_at
  t.ok(Date.parse(ahead) > Date.now() + 0.9 * HOUR, 'the database is an hour ahead')
  await clock.step(0)
  await service.verify(plaintext_key)
  const isBack = async () => (await service.verify(plaintext_key), Date.parse((await read()).last_used_at) < Date.now() + 0.1 * HOUR)
  await eventually(isBack)
  t.match(await read(), { first_used_at: /Z$/ }, 'the first use stays as it was written')
})

t.test('a change whose transaction sees the clock go back is no failure of the service, and nothing of it happens', async (t) => {
  const database = await createDatabase(t)
  const clock = await steppable(database)
  const service = await startService(t, {}, database)
  const { key } = await service.issue()
  const token = await service.token()
  const endIn = (ms: number) => service.call('PATCH', `/v1/keys/${key.id}`, { token, body: { expires_at: new Date(Date.now() + ms).toISOString() } })
  // What the service reads is from after the step; the transaction's own time, by which the trigger goes, is from before.
  await clock.step(-3)
  t.match(await endIn(-1000), { status: 503, body: { code: 'database_unavailable' } })
  t.match((await service.call('GET', `/v1/keys/${key.id}`, { token })).body, { status: 'active', expires_at: null })
  await clock.step(0)
  t.match(await endIn(60_000), { status: 200 })
})

t.test('a signing key that was made while the database was ahead signs when its clock is set right', async (t) => {
  const database = await createDatabase(t)
  const clock = await steppable(database)
  await clock.step(3600)
  const before = await startService(t, {}, database)
  await before.app.close()
  await clock.step(0)
  const service = await startService(t, { ROOT_SECRETS: before.config.ROOT_SECRETS!.join() }, database)
  const { plaintext_key } = await service.issue()
  const { iat, exp } = decodeJwt(await exchanged(service, plaintext_key))
  t.ok(Math.abs(iat! - Date.now() / 1000) < 60, 'its JWTs are of now')
  t.equal(exp! - iat!, 300)
})

t.test('a database whose clock jumps ahead frees no place of the status list while a JWT of its key may be alive', async (t) => {
  const database = await createDatabase(t)
  const clock = await steppable(database)
  const service = await startService(t, {}, database)
  const token = await service.token()
  const [revoked, old] = [await service.issue(), await service.issue({ mecha: 'old^acmecorp' })]
  for (const { plaintext_key } of [revoked, old]) await exchanged(service, plaintext_key)
  const keeper = new SigningKeyMaintenance({ db: database.db, roots: rootsOf(service.config.ROOT_SECRETS!) }, service.app.log, 50)
  t.teardown(() => keeper.stop())
  await keeper.start()
  await service.call('POST', `/v1/keys/${revoked.key.id}/revoke`, { token })
  await clock.step(KEEP + 600)
  await database.db.updateTable('keys').set({ expires_at: sql<Date>`pg_catalog.now() - make_interval(secs => ${KEEP + 120})` }).where('mecha', '=', 'old^acmecorp').execute()
  const places = () => database.db.selectFrom('token_status').select('key_id').orderBy('idx').execute()
  await eventually(async () => (await places())[1]!.key_id === null)
  t.match(await places(), [{ key_id: parsePublicId('mecha', revoked.key.id) }, { key_id: null }], 'what ended long ago by any clock has made room')
})

t.test('an address that called too often may call again after a minute, wherever the wall clock is set', async (t) => {
  const service = await startService(t, { REVOKE_TOKEN_RATE: '1' })
  const call = async () => (await sendForm(service, '/v1/revoke-token', { token: 'x' })).status
  t.equal(await call(), 200)
  t.equal(await call(), 429)
  const clocks = setClocks(t)
  clocks.wall = -HOUR
  clocks.monotonic = 61_000
  t.equal(await call(), 200)
})

t.test("an issuer's key that was withdrawn ends, and a new one is found, though the wall clock was set back", async (t) => {
  const issuer = await startIssuer(t)
  const service = await startService(t, { OIDC_ISSUER: issuer.url })
  const [withdrawn] = issuer.keys
  const list = async (token: string) => (await service.call('GET', '/v1/keys', { token })).status
  t.equal(await list(await issuer.token({ sub: 'first' })), 200)
  issuer.keys.splice(0, 1, await makeKey())
  t.equal(await list(await issuer.token({ sub: 'second' }, withdrawn)), 200, 'for as long as its key is used')
  const tokens = [await issuer.token({ sub: 'third' }, withdrawn), await issuer.token({ sub: 'fourth' })]
  setClocks(t).wall = -HOUR
  t.equal(await list(tokens[0]!), 401)
  t.equal(await list(tokens[1]!), 200)
})

t.test('the age of an issuer\'s keys counts on while the wall clock is set back little by little', async (t) => {
  const issuer = await startIssuer(t)
  const service = await startService(t, { OIDC_ISSUER: issuer.url, OIDC_JWKS_MAX_AGE: '10m' })
  const [withdrawn] = issuer.keys
  const list = async (token: string) => (await service.call('GET', '/v1/keys', { token })).status
  t.equal(await list(await issuer.token({ sub: 'first' })), 200)
  issuer.keys.splice(0, 1, await makeKey())
  const token = await issuer.token({ sub: 'second' }, withdrawn)
  const clocks = setClocks(t)
  clocks.monotonic = 601_000
  clocks.wall = 1
  t.equal(await list(token), 401)
})

t.test('a token that was checked is checked again after a minute of either clock, and when the clock was set back', async (t) => {
  const caller = {}
  const [slept, back, ended, kept] = Array.from({ length: 4 }, () => new ProvedTokens<object>(600_000))
  const clocks = setClocks(t)
  for (const tokens of [slept!, back!, kept!]) tokens.keep('token', caller, Date.now() + HOUR)
  ended!.keep('token', caller, Date.now() + 1000)
  for (const tokens of [slept!, back!, ended!, kept!]) t.equal(tokens.find('token'), caller)
  clocks.wall = 59_000
  t.equal(kept!.find('token'), caller)
  t.equal(ended!.find('token'), undefined, 'its own end')
  clocks.wall = 60_001
  t.equal(slept!.find('token'), undefined, 'the machine slept: the monotonic clock stood still')
  clocks.wall = -HOUR
  t.equal(back!.find('token'), undefined)
})

/** Milliseconds that this process's clocks are ahead, until the test is over. */
function setClocks(t: Test): { wall: number; monotonic: number } {
  const clocks = { wall: 0, monotonic: 0 }
  const [wall, monotonic] = [Date.now.bind(Date), performance.now.bind(performance)]
  t.intercept(Date, 'now', { value: () => wall() + clocks.wall })
  t.intercept(performance, 'now', { value: () => monotonic() + clocks.monotonic })
  return clocks
}
