import { randomBytes } from 'node:crypto'
import t from 'tap'
import { checkedExpiry, endOfNew, termOfNew, type ExpiryRequest } from '../../src/control/keys/expiry.js'
import { HANDLE_PATTERN } from '../../src/credentials/handle.js'
import { findPepper, gatewaySubject, hashSecret, HASH_PROFILES, isOutdated, nameOfPepper, verifySecret } from '../../src/credentials/hash.js'
import { deriveRoot, rootsOf } from '../../src/credentials/roots.js'
import { refusalAt, rotationRefusal, statusAt } from '../../src/credentials/status.js'

const now = new Date('2030-01-01T00:00:00.000Z')
const later = new Date(now.getTime() + 1000)
const alive = { revoked_at: null, expires_at: null, enabled: true, rotated_to: null }

t.test('a hash is bound to the id, the Mecha, the secret and the root secret, in both versions', async (t) => {
  const [root, other] = [deriveRoot(randomBytes(32).toString('hex')), deriveRoot(randomBytes(32).toString('hex'))]
  const input = { id: 'a', subject: 'sales^acmecorp', secret: 's' }
  for (const version of [1, 2] as const) {
    const phc = await hashSecret(input, { root, version }, 'high-entropy')
    t.match(phc, /^\$argon2id\$v=19\$m=64,t=1,p=1\$/)
    t.equal(await verifySecret(phc, input, { root, version }), true)
    for (const change of [{ id: 'b' }, { subject: 'buyer^acmecorp' }, { secret: 'S' }])
      t.equal(await verifySecret(phc, { ...input, ...change }, { root, version }), false, JSON.stringify(change))
    t.equal(await verifySecret(phc, input, { root: other, version }), false, 'another pepper')
    t.equal(await verifySecret(phc, input, { root: { ...root, secretMac: other.secretMac }, version }), version === 1, 'the digest is keyed')
    t.equal(await verifySecret(phc, input, { root, version: version === 1 ? 2 : 1 }), false, 'another version')
    t.not(await hashSecret(input, { root, version }, 'high-entropy'), phc, 'salted')
  }
})

t.test('a row says under which root and with which version of the input its hash was made', async (t) => {
  const roots = rootsOf([randomBytes(32).toString('hex'), randomBytes(32).toString('hex')])
  for (const root of roots) {
    t.same(findPepper(root.id, roots), { root, version: 1 }, 'as earlier releases wrote it')
    t.equal(nameOfPepper({ root, version: 1 }), root.id)
    t.same(findPepper(nameOfPepper({ root, version: 2 }), roots), { root, version: 2 })
    for (const name of [`${root.id}/1`, `${root.id}/3`, `${root.id}/2/2`, `${root.id}/`]) t.equal(findPepper(name, roots), undefined, name)
  }
  t.equal(findPepper('0123456789abcdef', roots), undefined)
  t.equal(findPepper('0123456789abcdef/2', roots), undefined)
})

t.test('a hash made with another profile is outdated', async (t) => {
  const root = deriveRoot(randomBytes(32).toString('hex'))
  const phc = await hashSecret({ id: 'a', subject: 'b', secret: 'c' }, { root, version: 2 }, 'owasp')
  t.match(phc, /\$m=19456,t=2,p=1\$/)
  t.equal(isOutdated(phc, 'owasp'), false)
  t.equal(isOutdated(phc, 'high-entropy'), true)
  t.same(Object.keys(HASH_PROFILES), ['high-entropy', 'owasp'])
})

t.test('a gateway of one organization and one of all have different subjects', async (t) => {
  t.not(gatewaySubject(null), gatewaySubject('acme'))
})

t.test('revoked wins over expired, expired over disabled, and a key is expired from expires_at on', async (t) => {
  t.equal(statusAt(alive, now), 'active')
  t.equal(statusAt({ ...alive, enabled: false }, now), 'disabled')
  t.equal(statusAt({ ...alive, enabled: false, expires_at: now }, now), 'expired')
  t.equal(statusAt({ ...alive, expires_at: later }, now), 'active')
  t.equal(statusAt({ enabled: false, expires_at: now, revoked_at: now }, now), 'revoked')
})

t.test('only an active key that was not rotated can be rotated, and the refusal says why', async (t) => {
  t.equal(rotationRefusal(alive, now), undefined)
  t.equal(rotationRefusal({ ...alive, revoked_at: now, rotated_to: 'x' }, now), 'key_revoked')
  t.equal(rotationRefusal({ ...alive, rotated_to: 'x', expires_at: now }, now), 'key_already_rotated')
  t.equal(rotationRefusal({ ...alive, expires_at: now }, now), 'key_expired')
  t.equal(rotationRefusal({ ...alive, enabled: false }, now), 'key_disabled')
})

t.test('what a key is comes before what is asked of it', async (t) => {
  const key = { ...alive, mecha: 'sales^acmecorp', scopes: ['a', 'b'] }
  t.equal(refusalAt(key, now, {}), undefined)
  t.equal(refusalAt(key, now, { mecha: 'sales^acmecorp', scopes: ['b'] }), undefined)
  t.equal(refusalAt(key, now, { scopes: [] }), undefined)
  t.equal(refusalAt(key, now, { mecha: 'buyer^acmecorp', scopes: ['c'] }), 'mecha_mismatch')
  t.equal(refusalAt(key, now, { scopes: ['a', 'c'] }), 'insufficient_scope')
  t.equal(refusalAt({ ...key, enabled: false }, now, { mecha: 'buyer^acmecorp' }), 'disabled')
})

t.test('a handle is name^crew and nothing else', async (t) => {
  const handle = new RegExp(HANDLE_PATTERN)
  const long = 'a'.repeat(64)
  for (const good of ['sales^acmecorp', 'buyer^seoul_cafe', 'a^b', '1-a^2_b', `${long}^${long}`]) t.match(good, handle)
  for (const bad of ['', 'sales', '^', 'a^', '^b', 'A^b', 'a^b^c', '-a^b', 'a-^b', 'a^_b', 'a^b_', 'a b^c', 'é^b', `${long}a^b`, 'a^b\n', 'a.b^c'])
    t.notMatch(bad, handle, JSON.stringify(bad))
})

t.test('a new key ends when it was asked to, within the policy', async (t) => {
  const inSeconds = (seconds: number) => new Date(now.getTime() + seconds * 1000)
  const free = { KEY_DEFAULT_TTL: undefined, KEY_MAX_TTL: undefined }
  const strict = { KEY_DEFAULT_TTL: 60, KEY_MAX_TTL: 100 }
  const expiryOfNew = (request: ExpiryRequest, at: Date, policy: Parameters<typeof termOfNew>[1], inherited?: number) => endOfNew(termOfNew(request, policy, inherited), at, policy)
  t.equal(expiryOfNew({}, now, free), null)
  t.same(expiryOfNew({}, now, strict), inSeconds(60))
  t.same(expiryOfNew({}, now, { ...strict, KEY_DEFAULT_TTL: undefined }), inSeconds(100), 'no default: the longest')
  t.same(expiryOfNew({ expires_in: 100 }, now, strict), inSeconds(100))
  t.same(expiryOfNew({ expires_at: '2030-01-01T01:00:01+01:00' }, now, strict), inSeconds(1), 'another time zone')
  t.same(expiryOfNew({}, now, strict, 5), inSeconds(5), 'inherited')
  t.same(expiryOfNew({}, now, strict, 500), inSeconds(100), 'inherited, and too long')
  t.equal(expiryOfNew({ expires_at: null }, now, free), null)
  for (const [request, field] of [
    [{ expires_in: 101 }, 'body.expires_in'],
    [{ expires_at: '2030-01-01T00:00:00Z' }, 'body.expires_at'],
    [{ expires_at: '2031-01-01T00:00:00Z' }, 'body.expires_at'],
    [{ expires_at: '2030-06-30T23:59:60Z' }, 'body.expires_at'],
    [{ expires_at: null }, 'body.expires_at'],
    [{ expires_in: 1, expires_at: '2030-01-01T00:00:01Z' }, 'body.expires_in'],
  ] as const)
    t.throws(() => expiryOfNew(request, now, strict), { code: 'invalid_request', extra: { errors: [{ field }] } }, JSON.stringify(request))
  t.throws(() => checkedExpiry('2030-01-01T00:01:41Z', now, now, strict), { code: 'invalid_request' }, 'counted from the issue')
})
