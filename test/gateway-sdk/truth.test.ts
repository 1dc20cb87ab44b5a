/** What a gateway holds against the truth: two histories of the database, and changes that nobody told of. */

import { randomBytes } from 'node:crypto'
import { sql } from 'kysely'
import t, { type Test } from 'tap'
import type { End } from '../../src/gateway-sdk/index.js'
import type { TestDatabase } from '../helpers/database.js'
import { eventually } from '../helpers/eventually.js'
import { held, isHeld, outcome, serve, split, verifierFor, type Served } from '../helpers/gateway.js'
import { copyOf, emptyFolder, startDatabase } from '../helpers/own-server.js'
import { startService } from '../helpers/service.js'
import { layWire } from '../helpers/wire.js'

const MINUTE = 60_000

t.test('a gateway behind a balancer over two primaries does not go on accepting what one of them has revoked', async (t) => {
  const { old, promoted, key, plaintext_key, credential } = await twoPrimaries(t)
  for (const [name, verifyUrl, streamUrl] of [['asked of the old one', old.url, promoted.url], ['told of by the old one', promoted.url, old.url]] as const)
    await t.test(`a key that is ${name}`, async (t) => {
      const proxy = await split(t, verifyUrl, streamUrl)
      const verifier = verifierFor(t, { url: proxy.url, credential }, { timeoutMs: 500, revalidateAfterMs: 1000 })
      await eventually(() => verifier.isFresh())
      if (verifyUrl === old.url) t.equal(await outcomeOf(old, plaintext_key, credential), 'valid', 'that one knows no better')
      for (let i = 0; i < 5; i++) {
        t.equal(await outcome(verifier, plaintext_key), 'service_unavailable', 'nobody knows which of them is the truth')
        t.notOk(isHeld(verifier, plaintext_key))
      }
      t.ok(verifier.state().counts.otherHistory > 0)
    })
  await t.test('one whose answers and changes are all of one history is answered', async (t) => {
    const verifier = verifierFor(t, { url: promoted.url, credential })
    t.equal(await outcome(verifier, plaintext_key), 'revoked', `${key.id} by the one`)
  })
})

t.test('what was held from one primary is not answered any more once an answer comes from another', async (t) => {
  const { old, promoted, key, plaintext_key, other, credential } = await twoPrimaries(t)
  // The balancer leads everything to the old one at first.
  const wire = await layWire(t, old.url)
  const proxy = await split(t, wire.through(old.url).replace(/\/$/, ''), old.url)
  const verifier = verifierFor(t, { url: proxy.url, credential }, { timeoutMs: 500 })
  await held(verifier, plaintext_key)
  const ends: End[] = []
  verifier.watch(key.id, (end) => ends.push(end))
  wire.leadTo(promoted.url)
  wire.cut()
  wire.restore()
  t.equal(await outcome(verifier, other), 'service_unavailable')
  t.notOk(isHeld(verifier, plaintext_key))
  t.notOk(verifier.isFresh())
  t.equal(await outcome(verifier, plaintext_key), 'service_unavailable')
  await eventually(() => ends.length > 0)
  t.match(ends, [{ reason: 'stale' }], 'and its sockets are asked about')
})

t.test('a gateway goes over to another history with the stream, and holds nothing from before', async (t) => {
  const { old, promoted, plaintext_key, other, credential } = await twoPrimaries(t)
  const wire = await layWire(t, old.url)
  const verifier = verifierFor(t, { url: wire.through(old.url).replace(/\/$/, ''), credential }, { maxStalenessMs: MINUTE })
  await held(verifier, plaintext_key)
  await held(verifier, other)
  wire.leadTo(promoted.url)
  wire.cut()
  wire.restore()
  await eventually(async () => (await outcome(verifier, plaintext_key)) === 'revoked')
  await held(verifier, other)
  t.ok(verifier.state().counts.resets > 0)
})

t.test('a change that nobody tells of ends what is held within the time for that, and nothing else', async (t) => {
  const served = await serve(t, { REVALIDATE_AFTER: '1s' })
  const verifier = verifierFor(t, served, { revalidateAfterMs: 1500 })
  const [gone, kept] = [await served.service.issue(), await served.service.issue()]
  for (const { plaintext_key } of [gone, kept]) await held(verifier, plaintext_key)
  const ends: End[] = []
  verifier.watch(gone.key.id, (end) => ends.push(end))
  await revokeUntold(served.service.database)
  t.equal(await outcome(verifier, gone.plaintext_key), 'valid', 'nobody told of it')
  await eventually(async () => (await outcome(verifier, gone.plaintext_key)) === 'revoked')
  t.match(ends, [{ reason: 'changed' }], 'its watches are told')
  t.ok(isHeld(verifier, kept.plaintext_key))
  await eventually(() => verifier.state().counts.revalidated > 2)
  t.ok(verifier.state().counts.revalidatedChanged >= 1)
  t.equal(verifier.state().counts.resets, 1, 'the stream told of nothing')
})

t.test('each key is compared once within the time for that, a few at a time', async (t) => {
  const served = await serve(t)
  const asked: { readonly at: number; readonly ids: readonly string[] }[] = []
  const proxy = await split(t, served.url, served.url, (path, body) => {
    if (path === '/v1/revalidate') asked.push({ at: performance.now(), ids: (JSON.parse(body) as { keys: { key_id: string }[] }).keys.map(({ key_id }) => key_id) })
  })
  const after = 6000
  const verifier = verifierFor(t, { ...served, url: proxy.url }, { revalidateAfterMs: after })
  const ids: string[] = []
  for (let i = 0; i < 30; i++) {
    const { key, plaintext_key } = await served.service.issue({ mecha: `m${i}^acmecorp` })
    await held(verifier, plaintext_key)
    ids.push(key.id)
  }
  const from = performance.now()
  await eventually(() => performance.now() - from > 2.5 * after)
  const within = asked.filter(({ at }) => at >= from)
  t.ok(Math.max(...within.map((one) => one.ids.length)) <= 5, 'not all at once')
  for (const id of ids) {
    const times = within.filter((one) => one.ids.includes(id)).map(({ at }) => at)
    const gaps = times.map((at, i) => at - (times[i - 1] ?? from))
    t.ok(times.length >= 2 && Math.max(...gaps) <= after, `${times.length} times, ${gaps.map(Math.round).join(' and ')} ms apart`)
    t.ok(times.length <= 4, 'and not much more often')
  }
  t.equal(verifier.state().counts.revalidatedChanged, 0)
})

t.test('what cannot be compared in time is asked about', async (t) => {
  const served = await serve(t)
  const proxy = await split(t, served.url, served.url, (path) => path !== '/v1/revalidate')
  const verifier = verifierFor(t, { ...served, url: proxy.url }, { revalidateAfterMs: 1000 })
  const { plaintext_key } = await served.service.issue()
  await held(verifier, plaintext_key)
  await eventually(() => verifier.state().counts.revalidatedChanged > 0)
  const { asked } = verifier.state().counts
  t.equal(await outcome(verifier, plaintext_key), 'valid')
  await eventually(() => verifier.state().counts.revalidatedChanged > 1 || verifier.state().counts.asked > asked)
})

/**
 * Two servers that were one: a primary that goes on beside the copy of it that was promoted, each with a replica of the service.
 * Then the key is revoked on the promoted one alone.
 */
async function twoPrimaries(t: Test) {
  const folder = emptyFolder(t)
  const seed = await startDatabase(t, folder)
  const ROOT_SECRETS = randomBytes(32).toString('base64url')
  const seeding = await startService(t, { ROOT_SECRETS }, seed.database)
  const { key, plaintext_key } = await seeding.issue()
  const { plaintext_key: other } = await seeding.issue()
  const credential = await seeding.gateway()
  await seeding.app.close()
  await seed.embedded.stop()
  const copy = copyOf(t, folder)
  const serving = async (place: string): Promise<Served> => serve(t, { ROOT_SECRETS, REVOCATION_MAX_STALENESS: '10s' }, (await startDatabase(t, place)).database)
  const [old, promoted] = [await serving(folder), await serving(copy)]
  await promoted.service.call('POST', `/v1/keys/${key.id}/revoke`, { token: await promoted.service.token() })
  return { old, promoted, key, plaintext_key, other, credential }
}

async function outcomeOf({ service }: Served, key: string, credential: string): Promise<string> {
  const verdict = await service.verify(key, {}, credential)
  return verdict.valid ? 'valid' : verdict.code
}

/** Revokes the oldest key with no trigger to tell of it. */
async function revokeUntold({ db }: TestDatabase): Promise<void> {
  await db.transaction().execute(async (trx) => {
    await sql`ALTER TABLE keys DISABLE TRIGGER keys_changed`.execute(trx)
    await sql`UPDATE keys SET revoked_at = now(), revoked_by = 'nobody told' WHERE created_at = (SELECT min(created_at) FROM keys WHERE kind = 'mecha')`.execute(trx)
    await sql`ALTER TABLE keys ENABLE ALWAYS TRIGGER keys_changed`.execute(trx)
  })
}
