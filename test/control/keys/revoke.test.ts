import t from 'tap'
import { startService } from '../../helpers/service.js'

t.test('200: a revocation is final, and a second one changes nothing', async (t) => {
  const service = await startService(t)
  const token = await service.token()
  const { key, plaintext_key } = await service.issue()
  const revoke = (reason: string, subject: string) => async () =>
    service.call('POST', `/v1/keys/${key.id}/revoke`, { token: await service.token({ subject }), body: { reason } })
  const first = await revoke('leaked', 'alice')()
  t.match(first, { status: 200, body: { id: key.id, status: 'revoked', revoked_by: 'builtin:alice', revoke_reason: 'leaked' } })
  t.same({ ...(await revoke('another reason', 'bob')()).body, propagation: null }, { ...first.body, propagation: null })
  t.same(await service.verify(plaintext_key), { valid: false, code: 'revoked' })
  const events = (await service.call('GET', '/v1/events?type=key.revoked', { token })).body.events
  t.equal(events.length, 1)
  await t.rejects(service.database.db.updateTable('keys').set({ enabled: true }).execute(), /a revoked key cannot be changed/, 'not even by hand')
})

t.test('200: without a body, and of a key that has expired or is disabled', async (t) => {
  const service = await startService(t)
  const token = await service.token()
  for (const change of [{}, { expires_at: new Date() }, { enabled: false }]) {
    const { key } = await service.issue()
    await service.database.db.updateTable('keys').set({ name: null, ...change }).where('revoked_at', 'is', null).where('kind', '=', 'mecha').execute()
    t.match(await service.call('POST', `/v1/keys/${key.id}/revoke`, { token }), { status: 200, body: { status: 'revoked', revoke_reason: null } })
  }
})

t.test('400 and 404', async (t) => {
  const service = await startService(t)
  const token = await service.token()
  const { key } = await service.issue()
  const call = (url: string, body?: object) => service.call('POST', url, { token, body })
  t.match(await call(`/v1/keys/${key.id}/revoke`, { reason: 'x'.repeat(501) }), { status: 400, body: { errors: [{ field: 'body.reason' }] } })
  t.match(await call(`/v1/keys/${key.id}/revoke`, { why: 'x' }), { status: 400, body: { errors: [{ field: 'body.why' }] } })
  t.match(await call('/v1/keys/key_01jd9p5v3fe8rr2k7m4q9wx0zt/revoke'), { status: 404 })
  t.match(await call('/v1/keys/gw_01jd9p5v3fe8rr2k7m4q9wx0zt/revoke'), { status: 400 })
  t.match(await call('/v1/mechas/nobody%5Eacmecorp/revoke-keys'), { status: 404, body: { code: 'not_found' } })
  t.match(await call('/v1/mechas/nobody/revoke-keys'), { status: 400, body: { errors: [{ field: 'path.mecha' }] } })
  t.equal((await service.call('GET', `/v1/keys/${key.id}`, { token })).body.status, 'active')
})

t.test('the kill switch revokes every key of that Mecha and no other', async (t) => {
  const service = await startService(t)
  const token = await service.token()
  const mine = [await service.issue(), await service.issue(), await service.issue()]
  const rotated = await service.call('POST', `/v1/keys/${mine[0]!.key.id}/rotate`, { token, body: { overlap_seconds: 60 } })
  await service.call('POST', `/v1/keys/${mine[1]!.key.id}/revoke`, { token, body: { reason: 'before' } })
  const other = await service.issue({ mecha: 'buyer^acmecorp' })
  const kill = () => service.call('POST', '/v1/mechas/sales%5Eacmecorp/revoke-keys', { token, body: { reason: 'rogue' } })
  const { status, body } = await kill()
  t.equal(status, 200)
  t.same(body.revoked.toSorted(), [mine[0]!.key.id, mine[2]!.key.id, rotated.body.key.id].toSorted())
  for (const plaintext of [...mine, rotated.body].map(({ plaintext_key }) => plaintext_key)) t.same(await service.verify(plaintext), { valid: false, code: 'revoked' })
  t.match(await service.verify(other.plaintext_key), { valid: true })
  t.equal((await service.call('GET', `/v1/keys/${mine[1]!.key.id}`, { token })).body.revoke_reason, 'before')
  t.same((await kill()).body.revoked, [])
  t.equal((await service.call('GET', '/v1/events?type=key.revoked', { token })).body.events.length, 4)
})

t.test('the kill switch and issues at the same instant: no key slips through unseen', async (t) => {
  const service = await startService(t, { MAX_ACTIVE_KEYS_PER_MECHA: '1000', DATABASE_TIMEOUT: '30s' })
  const token = await service.token()
  await service.issue()
  const [killed, ...issued] = await Promise.all([
    service.call('POST', '/v1/mechas/sales%5Eacmecorp/revoke-keys', { token }),
    ...Array.from({ length: 20 }, () => service.issue()),
  ])
  const keys = (await service.call('GET', '/v1/keys?limit=100', { token })).body.keys
  const revoked = keys.filter((key: any) => key.status === 'revoked')
  t.equal(keys.length, 21)
  t.same(killed.body.revoked.toSorted(), revoked.map((key: any) => key.id).toSorted(), 'what the answer names is what was revoked')
  const at = Date.parse(revoked[0].revoked_at)
  t.ok(keys.every((key: any) => key.status === 'revoked' || Date.parse(key.created_at) >= at), 'whatever lives was issued after it')
  t.equal(issued.length, 20)
})

t.test('revoke racing verify: once a revocation is answered, no verify that starts later says valid', async (t) => {
  const service = await startService(t, { DATABASE_TIMEOUT: '30s', MAX_ACTIVE_KEYS_PER_MECHA: '1000' })
  const token = await service.token()
  const gateway = await service.gateway()
  for (let round = 0; round < 10; round++) {
    const { key, plaintext_key } = await service.issue()
    let revoked = false
    const verifies = Array.from({ length: 8 }, async () => {
      const wrong = []
      for (;;) {
        const after = revoked
        const { valid } = await service.verify(plaintext_key, {}, gateway)
        if (after && valid) wrong.push(valid)
        if (after) return wrong
      }
    })
    await service.call('POST', `/v1/keys/${key.id}/revoke`, { token })
    revoked = true
    t.same((await Promise.all(verifies)).flat(), [])
  }
})
