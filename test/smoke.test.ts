import t from 'tap'
import { startService } from './helpers/service.js'

t.test('an issued key is valid until it is revoked', async (t) => {
  const service = await startService(t)
  const { key, plaintext_key } = await service.issue()
  t.match(await service.verify(plaintext_key), { valid: true, key_id: key.id })
  const token = await service.token()
  t.equal((await service.call('POST', `/v1/keys/${key.id}/revoke`, { token, body: { reason: 'x' } })).status, 200)
  t.same(await service.verify(plaintext_key), { valid: false, code: 'revoked' })
})
