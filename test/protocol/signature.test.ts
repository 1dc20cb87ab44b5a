/** Signed requests, against bytes that are written out and signatures that another implementation made of them. */

import { createHmac, randomUUID, webcrypto } from 'node:crypto'
import fc from 'fast-check'
import t from 'tap'
import { isNonce, isSignatureOf, NONCE_PATTERN, parseTimestamp, signRequest, type SignedRequest } from '../../src/protocol/signature.js'

/** No key, and nothing that could be taken for one: HMAC takes any text. */
const KEY = 'no-key-but-the-text-under-which-these-vectors-are-signed'
const KEY_BYTES = '6e6f2d6b65792d6275742d7468652d746578742d756e6465722d77686963682d74686573652d766563746f72732d6172652d7369676e6564'

/** `bytes` is what is signed: body, `|` (7c), nonce, `|`, timestamp. The signatures were made with Python's `hmac`. */
const VECTORS: (Omit<SignedRequest, 'key'> & { what: string; bytes: string; signature: string })[] = [
  {
    what: 'no body',
    body: '',
    nonce: '00000000-0000-4000-8000-000000000000',
    timestamp: '2030-01-31T12:00:00Z',
    bytes: '7c' + '30303030303030302d303030302d343030302d383030302d303030303030303030303030' + '7c' + '323033302d30312d33315431323a30303a30305a',
    signature: 'Oa2BdhG3RqLjPaV8e93J+ORsgYP1Hpk2gpDbxAp4+80=',
  },
  {
    what: 'JSON',
    body: '{"text":"hello"}',
    nonce: '3f2504e04f8941d39a0c0305e82c3301',
    timestamp: '2030-01-31T12:00:00.123Z',
    bytes: '7b2274657874223a2268656c6c6f227d' + '7c' + '3366323530346530346638393431643339613063303330356538326333333031' + '7c' + '323033302d30312d33315431323a30303a30302e3132335a',
    signature: 'aLC0eeJWM8EmsU3sRjEfOEGd4nqcYcJ15EHYxbxYOkA=',
  },
  {
    what: 'text beyond ASCII, which is its UTF-8, and an offset',
    body: 'Grüße, 東京 😀',
    nonce: 'AAECAwQFBgcICQoLDA0ODw==',
    timestamp: '2030-01-31T13:00:00.000001+01:00',
    bytes: '4772c3bcc39f652c20e69db1e4baac20f09f9880' + '7c' + '41414543417751464267634943516f4c4441304f44773d3d' + '7c' + '323033302d30312d33315431333a30303a30302e3030303030312b30313a3030',
    signature: '8Q1Ov0OUWKy6AIa8U+PS2FKgEXhcGHrA4faDzR0DnKo=',
  },
  {
    what: 'bytes that are no text, a | and a line feed among them',
    body: Uint8Array.of(0x00, 0xff, 0xfe, 0x7c, 0x0d, 0x0a, 0xc3),
    nonce: 'nonce.with-every~kind_of+char/=',
    timestamp: '2030-01-31T12:00:00Z',
    bytes: '00fffe7c0d0ac3' + '7c' + '6e6f6e63652e776974682d65766572797e6b696e645f6f662b636861722f3d' + '7c' + '323033302d30312d33315431323a30303a30305a',
    signature: 'gmHutAyX/jbsuAjiHSD16baixnQVTzEpj7ZYpyCP7Xo=',
  },
  {
    what: 'a body that ends like a signed one',
    body: 'a|0123456789abcdef|2030-01-31T12:00:00Z',
    nonce: 'fedcba9876543210',
    timestamp: '2030-01-31T12:00:01Z',
    bytes: '617c303132333435363738396162636465667c323033302d30312d33315431323a30303a30305a' + '7c' + '66656463626139383736353433323130' + '7c' + '323033302d30312d33315431323a30303a30315a',
    signature: '5UoHNNSltJ+J3fvKuea/7O42WCbE6sXs4KvPwUewQwQ=',
  },
]

t.test('the vectors: the bytes, and the signatures that other implementations make of them', async (t) => {
  const key = await webcrypto.subtle.importKey('raw', Buffer.from(KEY_BYTES, 'hex'), { name: 'HMAC', hash: 'SHA-256' }, false, ['sign'])
  for (const { what, bytes, signature, ...request } of VECTORS) {
    const signed = Buffer.from(bytes, 'hex')
    t.equal(Buffer.from(await webcrypto.subtle.sign('HMAC', key, signed)).toString('base64'), signature, `${what}: by WebCrypto, from the bytes`)
    t.equal(createHmac('sha256', KEY).update(signed).digest('base64'), signature, `${what}: by node:crypto, from the bytes`)
    t.equal(signRequest({ key: KEY, ...request }), signature, `${what}: by signRequest`)
    t.equal(isSignatureOf(signature, { key: KEY, ...request }), true, `${what}: by isSignatureOf`)
    const body = typeof request.body === 'string' ? new TextEncoder().encode(request.body) : request.body
    t.equal(isSignatureOf(signature, { key: `secret-token:${KEY}`, ...request, body }), true, `${what}: as bytes, and with the key in its scheme`)
  }
})

t.test('a signature is that of one request alone', async (t) => {
  const request = { key: KEY, ...VECTORS[1]! }
  const { signature } = VECTORS[1]!
  for (const other of [
    { body: '{"text":"hallo"}' }, { body: '{"text":"hello"} ' }, { body: '' }, { nonce: '3f2504e04f8941d39a0c0305e82c3302' }, { nonce: request.nonce.toUpperCase() },
    // The same instant, written otherwise.
    { timestamp: '2030-01-31T12:00:00.1230Z' }, { timestamp: '2030-01-31T12:00:00.123+00:00' },
    { key: `${KEY}x` }, { key: KEY.slice(1) }, { key: KEY.toUpperCase() },
  ])
    t.equal(isSignatureOf(signature, { ...request, ...other }), false, JSON.stringify(other))
})

t.test('nothing of what may be signed has the same bytes as something else', async (t) => {
  // The body of a request cannot be made longer with the nonce and the timestamp of another.
  const { body, nonce, timestamp, signature } = VECTORS[4]!
  const [start, ...rest] = String(body).split('|')
  const glued = { key: KEY, body: start!, nonce: `${rest.join('|')}|${nonce}`, timestamp }
  t.equal(createHmac('sha256', KEY).update(`${glued.body}|${glued.nonce}|${glued.timestamp}`).digest('base64'), signature, 'the bytes are the same')
  t.equal(isSignatureOf(signature, glued), false, 'and a nonce with | in it is none')
  t.throws(() => signRequest(glued), TypeError)
})

t.test('a signature is taken as standard base64 with its padding, and in no other writing', async (t) => {
  const request = { key: KEY, ...VECTORS[0]! }
  const { signature } = VECTORS[0]!
  const url = signature.replaceAll('+', '-').replaceAll('/', '_')
  const hex = Buffer.from(signature, 'base64').toString('hex')
  // The same 32 bytes, with a bit set that base64 does not use.
  const stray = signature.slice(0, 42) + String.fromCharCode(signature.charCodeAt(42) + 1) + '='
  t.same(Buffer.from(stray, 'base64'), Buffer.from(signature, 'base64'))
  const wide = String.fromCharCode(signature.charCodeAt(0) + 256) + signature.slice(1)
  for (const other of ['', '=', url, url.slice(0, 43), signature.slice(0, 43), `${signature}=`, ` ${signature}`, `${signature} `, `${signature}\n`, `${signature}, ${signature}`, hex, stray, wide, signature.toLowerCase(), 'A'.repeat(43) + '=', 'x'.repeat(100_000)])
    t.equal(isSignatureOf(other, request), false, other.slice(0, 90))
})

t.test('what has no key, a nonce that is none or no time is not signed, and no signature is its', async (t) => {
  const good = { key: KEY, body: 'x', nonce: randomUUID(), timestamp: '2030-01-31T12:00:00Z' }
  for (const wrong of [{ key: '' }, { key: 'secret-token:' }, { nonce: '' }, { nonce: 'x'.repeat(15) }, { timestamp: '' }, { timestamp: '1896091200' }]) {
    const request = { ...good, ...wrong }
    t.throws(() => signRequest(request), TypeError, JSON.stringify(wrong))
    const { key, body, nonce, timestamp } = request
    t.equal(isSignatureOf(createHmac('sha256', key).update(`${body}|${nonce}|${timestamp}`).digest('base64'), request), false, JSON.stringify(wrong))
  }
  t.notOk(failureOf({ ...good, nonce: '' }).includes(KEY), 'an error says nothing of the key')
})

t.test('a nonce is 16 to 128 characters, none of which ends it', async (t) => {
  for (const nonce of [randomUUID(), 'x'.repeat(16), 'x'.repeat(128), 'AAECAwQFBgcICQoLDA0ODw==', 'a.b_c~d+e/f=g-hi']) t.ok(isNonce(nonce), nonce)
  for (const nonce of ['', 'x'.repeat(15), 'x'.repeat(129), `${'x'.repeat(16)}\n`, ...[...'| ,;"\\\'\t\0é%:'].map((one) => 'x'.repeat(16) + one)]) t.notOk(isNonce(nonce), JSON.stringify(nonce))
  t.ok(new RegExp(NONCE_PATTERN, 'u').test(randomUUID()), 'as a schema has it')
})

t.test('a timestamp is a time of RFC 3339 that is in the calendar', async (t) => {
  const noon = Date.UTC(2028, 1, 29, 12)
  for (const [text, time] of [
    ['2028-02-29T12:00:00Z', noon], ['2028-02-29T12:00:00.0Z', noon], ['2028-02-29T12:00:00.5Z', noon + 500], ['2028-02-29T12:00:00.123456789Z', noon + 123],
    ['2028-02-29T12:00:00+00:00', noon], ['2028-02-29T12:00:00-00:00', noon], ['2028-02-29T17:30:00+05:30', noon], ['2028-02-28T23:00:00.25-13:00', noon + 250], ['2028-03-01T11:59:00+23:59', noon],
    ['1970-01-01T00:00:00Z', 0], ['0050-01-01T00:00:00Z', Date.parse('0050-01-01T00:00:00Z')],
  ] as const)
    t.equal(parseTimestamp(text), time, text)
  for (const text of [
    '', 'now', '1835438400', '2028-02-29', '2028-02-29T12:00Z', '2028-02-29T12:00:00', '2028-02-29 12:00:00Z', '2028-02-29t12:00:00Z', '2028-02-29T12:00:00z', ' 2028-02-29T12:00:00Z', '2028-02-29T12:00:00Z\n',
    '2027-02-29T12:00:00Z', '2028-02-30T12:00:00Z', '2028-04-31T12:00:00Z', '2028-13-01T12:00:00Z', '2028-00-01T12:00:00Z', '2028-01-00T12:00:00Z', '2028-01-32T12:00:00Z',
    '2028-02-29T24:00:00Z', '2028-02-29T12:60:00Z', '2028-12-31T23:59:60Z', '2028-02-29T12:00:00.Z', '2028-02-29T12:00:00.1234567890Z', '2028-02-29T12:00:00,5Z',
    '2028-02-29T12:00:00+0100', '2028-02-29T12:00:00+01', '2028-02-29T12:00:00+24:00', '2028-02-29T12:00:00+01:60', '2028-02-29T12:00:00|Z', '+002028-02-29T12:00:00Z', '28-02-29T12:00:00Z',
  ])
    t.equal(parseTimestamp(text), undefined, JSON.stringify(text))
  fc.assert(fc.property(fc.date({ min: new Date('0000-01-01'), max: new Date('9999-12-31'), noInvalidDate: true }), (date) => parseTimestamp(date.toISOString()) === date.getTime()))
})

t.test('any request is signed so that its signature is its own, and no other request\'s', async () => {
  const nonce = fc.string({ unit: fc.constantFrom(...'abzAZ019._~+/=-'), minLength: 16, maxLength: 128 })
  const requests = fc.record({ key: fc.string({ minLength: 1 }).filter((key) => key !== 'secret-token:'), body: fc.uint8Array(), nonce, timestamp: fc.constant('2030-01-31T12:00:00Z') })
  fc.assert(fc.property(requests, requests, (one, other) => {
    const signature = signRequest(one)
    const isSame = Buffer.from(one.body).equals(other.body) && one.key.replace(/^secret-token:/, '') === other.key.replace(/^secret-token:/, '') && one.nonce === other.nonce
    return isSignatureOf(signature, one) && isSignatureOf(signature, other) === isSame
  }))
})

function failureOf(request: SignedRequest): string {
  try {
    return signRequest(request)
  } catch (error) {
    return String((error as Error).stack)
  }
}
