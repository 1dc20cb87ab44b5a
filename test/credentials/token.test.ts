import { createHmac, randomBytes } from 'node:crypto'
import fc from 'fast-check'
import t from 'tap'
import { decodeId, encodeId, newId, parsePublicId, publicId } from '../../src/credentials/id.js'
import { createMac } from '../../src/credentials/hmac.js'
import { deriveRoot, type Roots } from '../../src/credentials/roots.js'
import { containsToken, isTaggedByUs, makeToken, parseToken, PREFIX, redactTokens } from '../../src/credentials/token.js'

const root = deriveRoot(randomBytes(32).toString('hex'))
const other = deriveRoot(randomBytes(32).toString('hex'))
const prefixes = fc.stringMatching(PREFIX)
const uuids = fc.uint8Array({ minLength: 16, maxLength: 16 }).map((bytes) => {
  const hex = Buffer.from(bytes).toString('hex')
  return [hex.slice(0, 8), hex.slice(8, 12), hex.slice(12, 16), hex.slice(16, 20), hex.slice(20)].join('-')
})
const BASE62 = [...'0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz_']

t.test('a key says its prefix and its id, and is as long as the design says', async (t) => {
  fc.assert(
    fc.property(prefixes, uuids, (prefix, id) => {
      const made = makeToken(prefix, id, root)
      const read = parseToken(made.text)
      t.same(read, made)
      return read?.prefix === prefix && read.id === id && made.text === `${made.tagged}${made.tag}${made.text.slice(-6)}` && made.tagged.endsWith(`_${made.secret}`) && made.text.length === prefix.length + 1 + 26 + 1 + 60 && /^[0-9A-Za-z_]+$/.test(made.text)
    }),
    { numRuns: 200 },
  )
})

t.test('a key is read behind secret-token: as well (RFC 8959)', async (t) => {
  const made = makeToken('mecha', newId(), root)
  t.same(parseToken(`secret-token:${made.text}`), made)
  t.equal(parseToken(`secret-token:secret-token:${made.text}`), undefined)
})

t.test('any single character changed, dropped or added makes a key malformed', async (t) => {
  fc.assert(
    fc.property(uuids, fc.nat(), fc.constantFrom(...BASE62), (id, at, character) => {
      const { text } = makeToken('mecha', id, root)
      const i = at % text.length
      const changed = text.slice(0, i) + character + text.slice(i + 1)
      const dropped = text.slice(0, i) + text.slice(i + 1)
      const added = text.slice(0, i) + character + text.slice(i)
      return (changed === text || parseToken(changed) === undefined) && parseToken(dropped) === undefined && parseToken(added) === undefined
    }),
    { numRuns: 1000 },
  )
  t.pass('for every sample')
})

t.test('every position of one key, changed to every other character, is malformed', async (t) => {
  const { text } = makeToken('mecha', newId(), root)
  let refused = 0
  for (let i = 0; i < text.length; i++)
    for (const character of BASE62) if (character !== text[i] && !parseToken(text.slice(0, i) + character + text.slice(i + 1))) refused++
  t.equal(refused, text.length * (BASE62.length - 1))
})

t.test('text that is no key is never read as one', async (t) => {
  fc.assert(fc.property(fc.string({ maxLength: 300 }), (text) => parseToken(text) === undefined))
  fc.assert(fc.property(fc.stringMatching(/^mecha_[0-7][0-9a-z]{25}_[0-9A-Za-z]{60}$/), (text) => parseToken(text) === undefined))
  t.pass('for every sample')
})

t.test('the tag tells who made a key', async (t) => {
  const made = makeToken('mecha', newId(), root)
  t.equal(isTaggedByUs(made, [root]), true)
  t.equal(isTaggedByUs(made, [other, root] as Roots), true, 'an older root secret still verifies')
  t.equal(isTaggedByUs(made, [other]), false)
})

t.test('the mac is HMAC-SHA-256, as Node.js and RFC 4231 have it', async (t) => {
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 64 }), fc.array(fc.string({ unit: 'binary-ascii', maxLength: 160 }), { maxLength: 5 }), (key, texts) => {
      const mac = createMac(key, 160)
      return texts.every((text) => mac(text) === createHmac('sha256', key).update(text, 'latin1').digest('binary'))
    }),
  )
  const jefe = createMac(Buffer.from('Jefe'), 28)('what do ya want for nothing?')
  t.equal(Buffer.from(jefe, 'latin1').toString('hex'), '5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843')
  t.throws(() => createMac(Buffer.alloc(65), 1), RangeError)
  t.throws(() => createMac(Buffer.alloc(64), 1)('xx'), RangeError)
})

t.test('a tag counts as a whole: none of its 64 bits can differ, and no second spelling stands for it', async (t) => {
  const value = (tag: string) => [...tag].reduce((sum, digit) => sum * 62n + BigInt(BASE62.indexOf(digit)), 0n)
  const spell = (n: bigint) => Array.from({ length: 11 }, (_, i) => BASE62[Number((n / 62n ** BigInt(10 - i)) % 62n)]).join('')
  const made = makeToken('mecha', newId(), root)
  const tag = value(made.tag)
  t.equal(isTaggedByUs({ tagged: made.tagged, tag: spell(tag) }, [root]), true)
  for (let bit = 0n; bit < 64n; bit++) t.equal(isTaggedByUs({ tagged: made.tagged, tag: spell(tag ^ (1n << bit)) }, [root]), false, `bit ${bit}`)
  const aliases = [1n, 2n].map((more) => tag + (more << 64n)).filter((one) => one < 62n ** 11n)
  t.ok(aliases.length > 0)
  for (const alias of aliases) t.equal(isTaggedByUs({ tagged: made.tagged, tag: spell(alias) }, [root]), false, 'with more than 64 bits')
})

t.test('no two keys share a secret', async (t) => {
  const secrets = new Set(Array.from({ length: 1000 }, () => makeToken('mecha', newId(), root).secret))
  t.equal(secrets.size, 1000)
})

t.test('roots of different secrets differ in id, tag key and pepper, and the same secret gives the same root', async (t) => {
  const secret = randomBytes(32).toString('hex')
  const [one, same] = [deriveRoot(secret), deriveRoot(secret)]
  t.same([one.id, one.pepper, one.mac('')], [same.id, same.pepper, same.mac('')])
  const fields = [root.id, other.id, root.mac(''), other.mac(''), root.pepper.toString('hex'), other.pepper.toString('hex')]
  t.equal(new Set(fields).size, 6)
})

t.test('a key is found and masked anywhere in a text', async (t) => {
  fc.assert(
    fc.property(fc.string(), fc.string(), (before, after) => {
      const { text } = makeToken('mecha', newId(), root)
      const whole = `${before}${text}!${after}`
      return containsToken(whole) && !redactTokens(whole).includes(text.slice(-60))
    }),
  )
  t.pass('for every sample')
})

t.test('ids survive the way to the API and back, in order of time', async (t) => {
  fc.assert(fc.property(uuids, (id) => decodeId(encodeId(id)) === id && parsePublicId('mecha', publicId('mecha', id)) === id))
  const ids = Array.from({ length: 100 }, () => publicId('mecha', newId()))
  t.same([...ids].sort(), ids)
  t.equal(parsePublicId('gateway', ids[0]!), undefined)
  t.equal(parsePublicId('mecha', 'key_81jd9p5v3fe8rr2k7m4q9wx0zt'), undefined, 'more than 128 bits')
  // The TypeID specification's own example.
  t.equal(encodeId('01890a5d-ac96-774b-bcce-b302099a8057'), '01h455vb4pex5vsknk084sn02q')
})
