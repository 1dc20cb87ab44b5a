import t from 'tap'
import { bearerChallenge, bearerToken } from '../../src/protocol/bearer.js'

t.test('a bearer token is read whatever the case of the scheme, and nothing else is one', async (t) => {
  for (const header of ['Bearer abc', 'bearer abc', 'BEARER   abc']) t.equal(bearerToken(header), 'abc', header)
  for (const header of ['', 'Bearer', 'Bearer ', 'Bearer  ', 'Bearer a b', 'abc', 'Basic abc', ' Bearer abc']) t.equal(bearerToken(header), undefined, header)
})

t.test('a challenge names its realm first, and what is wrong after it', async (t) => {
  t.equal(bearerChallenge('mecha'), 'Bearer realm="mecha"')
  t.equal(bearerChallenge('mecha', { error: 'insufficient_scope', scope: 'a b' }), 'Bearer realm="mecha", error="insufficient_scope", scope="a b"')
})
