/** Random lives of keys, held against a model of thirty lines. */

import fc from 'fast-check'
import t from 'tap'
import { parsePublicId } from '../../src/credentials/id.js'
import { applied } from '../helpers/database.js'
import { startService, type Service } from '../helpers/service.js'

/** The model: what should be known of each key, by what was done to it. */
interface ModelKey {
  id: string
  plaintext: string
  revoked: boolean
  expired: boolean
  disabled: boolean
  rotated: boolean
}
type Model = { keys: ModelKey[] }

const statusOf = (key: ModelKey) => (key.revoked ? 'revoked' : key.expired ? 'expired' : key.disabled ? 'disabled' : 'active')
const rotationCodeOf = (key: ModelKey) =>
  key.revoked ? 'key_revoked' : key.rotated ? 'key_already_rotated' : key.expired ? 'key_expired' : key.disabled ? 'key_disabled' : undefined

interface Real {
  service: Service
  token: string
  gateway: string
  /** A Mecha for each sequence, so that they share a database and nothing else. */
  mecha: string
}
type Command = fc.AsyncCommand<Model, Real>
type Act = (model: Model, real: Real, key: ModelKey) => Promise<void>

/** Something done to one of the keys that there are. */
const onKey = (name: string, act: Act) =>
  fc.nat(100).map((index): Command => ({
    check: (model) => model.keys.length > 0,
    run: (model, real) => act(model, real, model.keys[index % model.keys.length]!),
    toString: () => `${name}(${index})`,
  }))

function expect(what: string, actual: unknown, expected: unknown): void {
  if (JSON.stringify(actual) !== JSON.stringify(expected)) throw new Error(`${what}: ${JSON.stringify(actual)} instead of ${JSON.stringify(expected)}`)
}

const fresh = { revoked: false, expired: false, disabled: false, rotated: false }

const issue: fc.Arbitrary<Command> = fc.constant({
  check: (model) => model.keys.length < 12,
  async run(model, { service, token, mecha }) {
    const { status, body } = await service.call('POST', '/v1/keys', { token, body: { mecha } })
    expect('issue', status, 201)
    model.keys.push({ ...fresh, id: body.key.id, plaintext: body.plaintext_key })
  },
  toString: () => 'issue',
})

const use = onKey('use', async (_model, { service, gateway, mecha }, key) => {
  const verdict = await service.verify(key.plaintext, { mecha }, gateway)
  expect('verify', verdict.valid ? 'active' : verdict.code, statusOf(key))
})

const rotate = (overlap: number) =>
  onKey(`rotate with overlap ${overlap}`, async (model, { service, token }, key) => {
    const { status, body } = await service.call('POST', `/v1/keys/${key.id}/rotate`, { token, body: { overlap_seconds: overlap } })
    const refusal = rotationCodeOf(key)
    expect('rotate', status === 201 ? undefined : body.code, refusal)
    if (refusal) return
    key.rotated = true
    key.expired = overlap === 0
    model.keys.push({ ...fresh, id: body.key.id, plaintext: body.plaintext_key })
  })

const setEnabled = (enabled: boolean) =>
  onKey(enabled ? 'enable' : 'disable', async (_model, { service, token }, key) => {
    const { status, body } = await service.call('PATCH', `/v1/keys/${key.id}`, { token, body: { enabled } })
    const refusal = key.revoked ? 'key_revoked' : key.expired ? 'key_expired' : undefined
    expect('patch', status === 200 ? undefined : body.code, refusal)
    if (!refusal) key.disabled = !enabled
  })

const revoke = onKey('revoke', async (_model, { service, token }, key) => {
  expect('revoke', (await service.call('POST', `/v1/keys/${key.id}/revoke`, { token })).status, 200)
  key.revoked = true
})

/** Time passes for one key: its end is brought to this instant by hand. */
const expire = onKey('expire', async (_model, { service }, key) => {
  if (key.revoked) return
  await service.database.db
    .updateTable('keys').set((eb) => ({ expires_at: eb.ref('created_at') }))
    .where('id', '=', parsePublicId('mecha', key.id)!).execute()
  await applied(service.database)
  key.expired = true
})

const killSwitch: fc.Arbitrary<Command> = fc.constant({
  check: (model) => model.keys.length > 0,
  async run(model, { service, token, mecha }) {
    const { body } = await service.call('POST', `/v1/mechas/${encodeURIComponent(mecha)}/revoke-keys`, { token })
    const living = model.keys.filter((key) => !key.revoked && !key.expired)
    expect('kill switch', body.revoked.toSorted(), living.map(({ id }) => id).sort())
    for (const key of living) key.revoked = true
  },
  toString: () => 'kill switch',
})

const list: fc.Arbitrary<Command> = fc.constant({
  check: () => true,
  async run(model, { service, token, mecha }) {
    const { body } = await service.call('GET', `/v1/keys?limit=100&mecha=${encodeURIComponent(mecha)}`, { token })
    const listed = body.keys.map(({ id, status }: any) => [id, status]).sort()
    expect('list', listed, model.keys.map((key) => [key.id, statusOf(key)]).sort())
    for (const status of ['active', 'disabled', 'expired', 'revoked']) {
      const filtered = await service.call('GET', `/v1/keys?limit=100&status=${status}&mecha=${encodeURIComponent(mecha)}`, { token })
      expect(`list ${status}`, filtered.body.keys.map(({ id }: any) => id).sort(), model.keys.filter((key) => statusOf(key) === status).map(({ id }) => id).sort())
    }
  },
  toString: () => 'list',
})

t.test('in 200 random sequences of issue, use, rotate, disable, revoke and expire the service does as the model does', async (t) => {
  const service = await startService(t, { MAX_ACTIVE_KEYS_PER_MECHA: '1000' })
  const [token, gateway] = [await service.token(), await service.gateway()]
  let sequences = 0
  const commands = fc.commands(
    [issue, issue, use, use, rotate(60), rotate(0), setEnabled(false), setEnabled(true), revoke, expire, killSwitch, list],
    { maxCommands: 12 },
  )
  await fc.assert(
    fc.asyncProperty(commands, async (sequence) => {
      const mecha = `m${sequences++}^model`
      await fc.asyncModelRun(() => ({ model: { keys: [] }, real: { service, token, gateway, mecha } }), sequence)
    }),
    { numRuns: 200 },
  )
  t.ok(sequences >= 200)
})
