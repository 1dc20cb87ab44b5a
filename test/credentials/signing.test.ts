import { randomBytes } from 'node:crypto'
import fc from 'fast-check'
import { calculateJwkThumbprint, exportJWK, jwtVerify, SignJWT } from 'jose'
import t from 'tap'
import { deriveRoot, rootsOf } from '../../src/credentials/roots.js'
import { seal, unseal } from '../../src/credentials/seal.js'
import { endedBy, JWKS_MAX_AGE, KEEP, LEAD, makeSigningKey, MAX_KEYS_AGE, MAX_TOKEN_TTL, openSigningKey, resealSigningKey, signerAt, SIGNING_ALGORITHMS } from '../../src/credentials/signing-key.js'

const [one, other] = [randomBytes(32).toString('hex'), randomBytes(32).toString('hex')]
const root = deriveRoot(one)

for (const alg of SIGNING_ALGORITHMS)
  t.test(`a key of ${alg} signs what its public part verifies, and is named by its thumbprint`, async (t) => {
    const stored = makeSigningKey(alg, root)
    const { kid, jwk, privateKey, publicKey } = openSigningKey(stored, [root])
    t.equal(kid, await calculateJwkThumbprint(await exportJWK(publicKey)))
    t.equal(kid, await calculateJwkThumbprint(jwk as object))
    t.match(jwk, { kid, alg, use: 'sig' })
    t.notOk('d' in jwk)
    const jwt = await new SignJWT({}).setProtectedHeader({ alg }).sign(privateKey)
    await t.resolves(jwtVerify(jwt, publicKey, { algorithms: [alg] }))
    await t.rejects(jwtVerify(jwt, openSigningKey(makeSigningKey(alg, root), [root]).publicKey))
  })

t.test('a key is opened by its root alone, as the key that it is, and as it was made', async (t) => {
  const stored = makeSigningKey('EdDSA', root)
  const another = makeSigningKey('EdDSA', root)
  const roots = rootsOf([other, one])
  t.equal(openSigningKey(stored, roots).kid, stored.kid)
  t.throws(() => openSigningKey(stored, rootsOf([other])), { message: /is not configured$/ })
  t.throws(() => openSigningKey({ ...stored, root: deriveRoot(other).id }, roots), 'another root')
  t.throws(() => openSigningKey({ ...stored, kid: another.kid }, roots), "another row's name")
  t.throws(() => openSigningKey({ ...stored, sealed: another.sealed }, roots), "another row's key")
  t.throws(() => openSigningKey({ ...stored, alg: 'ES256' }, roots), 'another algorithm')
  for (const at of [0, 11, 12, stored.sealed.length - 17, stored.sealed.length - 1]) {
    const changed = Buffer.from(stored.sealed)
    changed[at]! ^= 1
    t.throws(() => openSigningKey({ ...stored, sealed: changed }, roots), `a bit of byte ${at}`)
  }
  for (const length of [0, 12, 27, stored.sealed.length - 1]) t.throws(() => openSigningKey({ ...stored, sealed: stored.sealed.subarray(0, length) }, roots), `${length} bytes`)
})

t.test('a key that is sealed anew is the same key under the newest root, and no longer under the one before', async (t) => {
  const stored = makeSigningKey('ES256', root)
  const moved = resealSigningKey(stored, rootsOf([other, one]))
  t.equal(moved.root, deriveRoot(other).id)
  t.same(openSigningKey(moved, rootsOf([other])).jwk, openSigningKey(stored, [root]).jwk)
  t.throws(() => openSigningKey(moved, [root]), { message: /is not configured$/ })
})

t.test('what is sealed opens as it was, and no two seals are alike', async (t) => {
  const sealing = deriveRoot(one)
  fc.assert(fc.property(fc.uint8Array({ maxLength: 200 }), fc.string(), (secret, purpose) => {
    const sealed = seal(secret, purpose, sealing)
    return unseal(sealed, purpose, sealing).equals(Buffer.from(secret)) && !sealed.equals(seal(secret, purpose, sealing)) && (secret.length < 8 || !sealed.includes(Buffer.from(secret)))
  }))
  t.pass()
})

t.test('the three keys of a root have nothing in common', async (t) => {
  const { pepper, sealing, id } = deriveRoot(one)
  t.equal(sealing.length, 32)
  t.notOk(pepper.equals(sealing))
  t.notOk(sealing.toString('hex').startsWith(id))
})

t.test('the times fit together', async (t) => {
  t.ok(LEAD > JWKS_MAX_AGE + MAX_KEYS_AGE, 'everybody has a key before it signs')
  t.ok(KEEP >= MAX_TOKEN_TTL + MAX_KEYS_AGE, 'a key goes after the last JWT of a replica that did not know its successor yet')
})

t.test('at any instant one key signs, and none has gone that signed what is alive', async (t) => {
  const times = fc.uniqueArray(fc.integer({ min: 0, max: 100_000 }), { minLength: 1, maxLength: 8 })
  fc.assert(fc.property(times, fc.integer({ min: 0, max: 200_000 }), (starts, at) => {
    const keys = starts.map((seconds) => ({ signs_from: new Date(seconds * 1000) }))
    const signer = signerAt(keys, at * 1000)
    const expected = Math.max(...starts.filter((start) => start <= at))
    if (signer ? signer.signs_from.getTime() !== expected * 1000 : Number.isFinite(expected)) return false
    const ended = endedBy(keys, at * 1000)
    // By the definition: it has a successor that has been signing for as long as the key is kept.
    const byDefinition = keys.filter((key) => keys.some((next) => next.signs_from > key.signs_from && next.signs_from.getTime() <= (at - KEEP) * 1000))
    return ended.length === byDefinition.length && ended.every((key) => byDefinition.includes(key)) && !(signer && ended.includes(signer))
  }), { numRuns: 500 })
  t.pass()
})
