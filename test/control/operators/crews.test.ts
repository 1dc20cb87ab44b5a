import { sql } from 'kysely'
import t, { type Test } from 'tap'
import { createDatabase } from '../../helpers/database.js'
import { eventually } from '../../helpers/eventually.js'
import { run, type Ended } from '../../helpers/process.js'
import { isSameAnswer, NOTHING } from '../../helpers/refusals.js'
import { startService, type Answer, type CallOptions, type Service } from '../../helpers/service.js'

const service = await startService(t, {}, await createDatabase(t))
const all = await service.token()
const narrowed = await service.token({ crews: ['acmecorp'] })
const none = await service.token({ crews: [] })
const ours = (await service.issue({ mecha: 'sales^acmecorp' })).key
const theirs = (await service.issue({ mecha: 'sales^globex' })).key
const neighbours = (await service.issue({ mecha: 'acmecorp^acmecorp2' })).key
await service.gateway()

t.test('an operator of some crews does there what they could do everywhere', async (t) => {
  const token = narrowed
  const issued = await service.call('POST', '/v1/keys', { token, body: { mecha: 'support^acmecorp' } })
  t.equal(issued.status, 201)
  const { id } = issued.body.key
  t.match((await service.call('GET', `/v1/keys/${id}`, { token })).body, { id, status: 'active' })
  t.match((await service.call('PATCH', `/v1/keys/${id}`, { token, body: { name: 'nightly' } })).body, { name: 'nightly' })
  const rotated = await service.call('POST', `/v1/keys/${id}/rotate`, { token })
  t.equal(rotated.status, 201)
  t.match((await service.call('POST', `/v1/keys/${id}/revoke`, { token })).body, { status: 'revoked' })
  t.same((await service.call('POST', '/v1/mechas/support%5Eacmecorp/revoke-keys', { token })).body.revoked, [rotated.body.key.id])
  const { events } = (await service.call('GET', '/v1/events?mecha=support%5Eacmecorp', { token })).body
  t.same(events.map(({ type }: { type: string }) => type), ['key.issued', 'key.updated', 'key.rotated', 'key.issued', 'key.revoked', 'key.revoked'])
})

t.test('what belongs to other crews is, to the byte, what does not exist', async (t) => {
  for (const [token, key, mecha] of [[narrowed, theirs, 'sales%5Eglobex'], [narrowed, neighbours, 'acmecorp%5Eacmecorp2'], [none, ours, 'sales%5Eacmecorp']] as const) {
    const ask = (method: 'GET' | 'POST' | 'PATCH', url: string, body?: object): Promise<Answer> =>
      service.call(method, url, { token, ...(body && { body }) } satisfies CallOptions)
    const nothing = await ask('GET', `/v1/keys/${NOTHING.key}`)
    t.match(nothing, { status: 404, body: { code: 'not_found' } })
    for (const [id, what] of [[key.id, 'theirs'], [NOTHING.key, "nobody's"]]) {
      isSameAnswer(t, await ask('GET', `/v1/keys/${id}`), nothing, `get ${what}`)
      isSameAnswer(t, await ask('PATCH', `/v1/keys/${id}`, { name: 'x' }), nothing, `update ${what}`)
      isSameAnswer(t, await ask('POST', `/v1/keys/${id}/rotate`), nothing, `rotate ${what}`)
      isSameAnswer(t, await ask('POST', `/v1/keys/${id}/revoke`), nothing, `revoke ${what}`)
    }
    for (const [handle, what] of [[mecha, 'theirs'], [mecha.replace(/^\w+/, 'nobody'), "nobody's"]] as const) {
      isSameAnswer(t, await ask('POST', `/v1/mechas/${handle}/revoke-keys`), nothing, `the kill switch for ${what}`)
      isSameAnswer(t, await ask('POST', '/v1/keys', { mecha: decodeURIComponent(handle) }), nothing, `issue for ${what}`)
    }
  }
  for (const { id } of [ours, theirs, neighbours]) t.match((await service.call('GET', `/v1/keys/${id}`, { token: all })).body, { status: 'active', name: null, rotated_to: null }, 'nothing was touched')
})

t.test('an operator of several crews lists what is in any of them, in one order and in pages', async (t) => {
  const org = 'several'
  const token = await service.token({ org })
  const ids: string[] = []
  for (let i = 0; i < 12; i++) {
    const { key } = await service.issue({ mecha: `m${i}^several${i % 3}`, expires_in: 3600 }, { org })
    ids.push(key.id)
    if (i % 4 === 1) await service.call('PATCH', `/v1/keys/${key.id}`, { token, body: { enabled: false } })
    if (i % 4 === 2) await service.call('POST', `/v1/keys/${key.id}/revoke`, { token })
  }
  await sql`UPDATE keys SET expires_at = now() - (extract(milliseconds FROM created_at)::int % 3) * interval '1 minute' WHERE org_id = ${org} AND split_part(mecha, '^', 1) IN ('m3', 'm4', 'm7', 'm11')`.execute(service.database.db)
  const listAll = async (path: string, of: 'keys' | 'events', token: string) => {
    const seen: any[] = []
    for (let next = ''; ; ) {
      const { body } = await service.call('GET', `${path}&limit=2${next}`, { token })
      seen.push(...body[of])
      if (of === 'keys' ? body.next_cursor === null : body.events.length === 0) return seen
      next = of === 'keys' ? `&cursor=${body.next_cursor}` : `&after=${body.next_after}`
    }
  }
  const isTheirs = ({ mecha }: { mecha: string }) => /several[02]$/.test(mecha)
  // A crew that a token names twice is one crew.
  const several = await service.token({ org, crews: ['several2', 'several0', 'several2', 'nobody'] })
  for (const query of ['', '&status=active', '&status=disabled', '&status=expired', '&status=revoked', '&mecha=m0%5Eseveral0', '&mecha=m1%5Eseveral1']) {
    const expected = (await listAll(`/v1/keys?${query}`, 'keys', token)).filter(isTheirs)
    t.same(await listAll(`/v1/keys?${query}`, 'keys', several), expected, query)
  }
  for (const query of ['', '&type=key.revoked', '&mecha=m0%5Eseveral0', `&key_id=${ids[0]}`, `&key_id=${ids[1]}`, '&actor=builtin:alice', '&since=2020-01-01T00:00:00Z']) {
    const expected = (await listAll(`/v1/events?${query}`, 'events', token)).filter(isTheirs)
    t.same(await listAll(`/v1/events?${query}`, 'events', several), expected, query)
  }
  t.equal((await listAll('/v1/keys?', 'keys', several)).length, 8)
})

t.test('an attempt to issue for another crew does not take its handle', async (t) => {
  t.equal((await service.call('POST', '/v1/keys', { token: narrowed, body: { mecha: 'new^initech' } })).status, 404)
  t.equal((await service.issue({ mecha: 'new^initech' }, { org: 'initech' })).key.org_id, 'initech')
})

t.test('an Idempotency-Key does not reach what its operator was narrowed away from', async (t) => {
  const request = { body: { mecha: 'once^globex' }, headers: { 'idempotency-key': 'once' } }
  const first = await service.call('POST', '/v1/keys', { token: all, ...request })
  t.equal(first.status, 201)
  t.equal((await service.call('POST', '/v1/keys', { token: narrowed, ...request })).status, 404)
  t.match(await service.verify(first.body.plaintext_key), { valid: true }, 'and its secret was not replaced')
})

t.test('lists and events show the crews of the token alone', async (t) => {
  const crewsIn = async (token: string, query = '') => {
    const { body } = await service.call('GET', `/v1/keys?limit=100${query}`, { token })
    return [...new Set(body.keys.map(({ mecha }: { mecha: string }) => mecha.split('^')[1]))].sort()
  }
  t.same(await crewsIn(all), ['acmecorp', 'acmecorp2', 'globex'])
  t.same(await crewsIn(narrowed), ['acmecorp'])
  t.same(await crewsIn(await service.token({ crews: ['acmecorp', 'globex'] })), ['acmecorp', 'globex'])
  t.same(await crewsIn(none), [])
  t.same(await crewsIn(narrowed, '&mecha=sales%5Eglobex'), [])

  const eventsIn = async (token: string, query = '') => (await service.call('GET', `/v1/events?limit=100${query}`, { token })).body.events
  const crewsOf = (events: { mecha: string | null }[]) => [...new Set(events.map(({ mecha }) => mecha?.split('^')[1] ?? 'none'))].sort()
  t.same(crewsOf(await eventsIn(all)), ['acmecorp', 'acmecorp2', 'globex', 'none'], 'none: those of gateways')
  t.same(crewsOf(await eventsIn(narrowed)), ['acmecorp'])
  t.same(await eventsIn(none), [])
  t.same(await eventsIn(narrowed, `&key_id=${theirs.id}`), [])
  t.same(await eventsIn(narrowed, '&mecha=sales%5Eglobex'), [])
  t.same(await eventsIn(narrowed, '&type=gateway.created'), [])
})

t.test('a cursor or a position of somebody else shows nothing more', async (t) => {
  const { next_cursor } = (await service.call('GET', '/v1/keys?limit=1', { token: all })).body
  const { keys } = (await service.call('GET', `/v1/keys?limit=100&cursor=${next_cursor}`, { token: narrowed })).body
  t.ok(keys.length > 0)
  t.same(keys.filter(({ mecha }: { mecha: string }) => !mecha.endsWith('^acmecorp')), [])
})

t.test('gateways are not for an operator of some crews', async (t) => {
  const [gateway] = (await service.call('GET', '/v1/gateways', { token: all })).body.gateways
  for (const token of [narrowed, none]) {
    const answers = [
      await service.call('GET', '/v1/gateways', { token }),
      await service.call('POST', '/v1/gateways', { token, body: { name: 'mine' } }),
      await service.call('POST', `/v1/gateways/${gateway.id}/revoke`, { token }),
      await service.call('POST', `/v1/gateways/${NOTHING.gateway}/revoke`, { token }),
    ]
    for (const answer of answers) t.match(answer, { status: 403, body: { code: 'crews_restricted' } })
    isSameAnswer(t, answers[2]!, answers[3]!, 'whether the gateway exists or not')
  }
  const { gateways } = (await service.call('GET', '/v1/gateways', { token: all })).body
  t.ok(gateways.length > 0)
  t.notMatch(gateways, [{ name: 'mine' }])
  for (const one of gateways) t.equal(one.status, 'active')
})

/** What stands in the database is of the tests above. */
const { database } = service
const crew = (t: Test, ...args: string[]): Promise<Ended> => run(t, ['crew', ...args], { env: { DATABASE_URL: database.control, MIGRATE_DATABASE_URL: database.owner } })

async function issue(of: Service, org: string, mecha: string, crews?: string[]): Promise<Answer> {
  return of.call('POST', '/v1/keys', { token: await of.token({ org, ...(crews && { crews }) }), body: { mecha } })
}

t.test('a crew that is reserved is for its organization alone, and no answer tells what is in it', async (t) => {
  const nothing = await service.call('GET', `/v1/keys/${NOTHING.key}`, { token: all })
  t.equal((await issue(service, 'acme', 'early^harbour')).status, 201, 'before')
  const reserved = await crew(t, 'reserve', 'harbour', 'harbour-2', '--org', 'globex')
  t.match(reserved, { code: 0, stderr: '', stdout: 'harbour is reserved for globex\n  acme had 1 of its Mechas in harbour before, which stay its own\nharbour-2 is reserved for globex\n' })

  t.equal((await issue(service, 'globex', 'sales^harbour')).status, 201)
  for (const mecha of ['sales^harbour', 'nobody^harbour', 'nobody^harbour-2'])
    for (const crews of [undefined, ['harbour', 'harbour-2']]) isSameAnswer(t, await issue(service, 'acme', mecha, crews), nothing, `${mecha}, whatever the token names`)
  t.equal((await issue(service, 'acme', 'early^harbour')).status, 201, 'what was its own stays so')
  isSameAnswer(t, await issue(service, 'globex', 'early^harbour'), nothing, 'for its organization as well')
  t.equal((await issue(service, 'acme', 'sales^harbour2')).status, 201, 'the start of a name is not the name')

  const [again, taken, listed, odd, wrongOrg] = await Promise.all([
    crew(t, 'reserve', 'harbour-2', '--org', 'globex'), crew(t, 'reserve', 'harbour', 'harbour-2', '--org', 'acme'), crew(t, 'list', '--json'), crew(t, 'reserve', 'Harbour', '--org', 'acme'), crew(t, 'reserve', 'x', '--org', 'two words'),
  ])
  t.match(again, { code: 0, stdout: 'harbour-2 is reserved for globex, and was before\n' })
  t.match(taken, { code: 1, stdout: /^harbour is reserved for globex: release it first\n/ })
  t.match(JSON.parse(listed.stdout), { crews: [{ crew: 'harbour', org_id: 'globex', reserved_at: /Z$/ }, { crew: 'harbour-2', org_id: 'globex' }] })
  t.match(odd, { code: 2, stderr: /must be a crew/ })
  t.match(wrongOrg, { code: 2, stderr: /--org must be an organization's id/ })

  t.match(await crew(t, 'release', 'harbour'), { code: 0, stdout: 'released harbour, which was reserved for globex\n' })
  t.match(await crew(t, 'release', 'harbour'), { code: 1, stdout: 'harbour is reserved for nobody\n' })
  t.equal((await issue(service, 'acme', 'nobody^harbour')).status, 201)
  const events = await database.db.selectFrom('events').selectAll().where('kind', '=', 'crew').orderBy('position').execute()
  const expected = { org_id: null, key_id: null, actor: /^cli:/, data: { crew: 'harbour', org_id: 'globex' } }
  t.match(events, [{ ...expected, type: 'crew.reserved' }, { type: 'crew.reserved', data: { crew: 'harbour-2' } }, { ...expected, type: 'crew.released' }])
  t.equal(events.length, 3)
})

t.test('CREWS=claim: a new handle takes a claim to its crew, by the token or by a reservation, and nothing else tells one from another', async (t) => {
  const closed = await startService(t, { CREWS: 'claim', ROOT_SECRETS: service.config.ROOT_SECRETS!.join() }, database)
  const nothing = await closed.call('GET', `/v1/keys/${NOTHING.key}`, { token: all })
  await service.issue({ mecha: 'sales^strangers' }, { org: 'globex' })
  for (const mecha of ['sales^strangers', 'nobody^strangers', 'nobody^nowhere']) isSameAnswer(t, await issue(closed, 'acme', mecha), nothing, mecha)
  t.equal((await database.db.selectFrom('mechas').select('handle').where('handle', 'like', 'nobody^nowhere').execute()).length, 0, 'and no handle is taken')

  t.equal((await issue(closed, 'acme', 'new^claimed', ['claimed'])).status, 201, 'named by the token')
  t.equal((await issue(closed, 'acme', 'other^claimed')).status, 404, 'which gives no claim to others')
  t.equal((await issue(closed, 'acme', 'new^claimed')).status, 201, 'what is its own stays so')
  await crew(t, 'reserve', 'ours-alone', '--org', 'acme')
  await crew(t, 'reserve', 'theirs-alone', '--org', 'globex')
  t.equal((await issue(closed, 'acme', 'new^ours-alone')).status, 201, 'reserved')
  for (const [org, mecha] of [['globex', 'x^ours-alone'], ['acme', 'x^theirs-alone']] as const)
    for (const crews of [undefined, ['ours-alone', 'theirs-alone']]) isSameAnswer(t, await issue(closed, org, mecha, crews), nothing, 'reserved for another, whatever the token names')

  const { body } = await closed.call('GET', '/v1/keys?mecha=new%5Eclaimed', { token: all })
  t.equal((await closed.call('POST', `/v1/keys/${body.keys[0].id}/rotate`, { token: all })).status, 201)
})

t.test('whoever takes a handle while its crew is being reserved has it before, or finds the reservation', async (t) => {
  const isWaiting = async () => (await sql`SELECT FROM pg_locks WHERE relation = 'mechas'::regclass AND NOT granted`.execute(database.db)).rows.length > 0
  let reserving: Promise<Ended> | undefined
  await database.db.transaction().execute(async (trx) => {
    await sql`INSERT INTO mechas (handle, org_id) VALUES ('first^contested', 'acme')`.execute(trx)
    reserving = crew(t, 'reserve', 'contested', '--org', 'globex')
    await eventually(isWaiting)
  })
  t.match(await reserving, { code: 0, stdout: /acme had 1 of its Mechas in contested/ })

  let issuing: Promise<Answer> | undefined
  await database.db.transaction().execute(async (trx) => {
    await sql`LOCK TABLE mechas IN SHARE ROW EXCLUSIVE MODE`.execute(trx)
    issuing = issue(service, 'acme', 'second^disputed')
    await eventually(isWaiting)
    await sql`INSERT INTO crews (crew, org_id) VALUES ('disputed', 'globex')`.execute(trx)
  })
  t.match(await issuing, { status: 404 })
})
