import { setTimeout } from 'node:timers/promises'
import t, { type Test } from 'tap'
import { signOperatorToken } from '../../../src/control/operators/builtin-issuer.js'
import { createDatabase } from '../../helpers/database.js'
import { makeKey, startIssuer, type Behaviour, type Document, type Issuer } from '../../helpers/issuer.js'
import { startService, type Answer, type Service } from '../../helpers/service.js'

const database = await createDatabase(t)

// Most of their time is spent waiting: for a cooldown, for a time-out.
t.jobs = 4

t.test('an issuer that never answers is given up, and one request is made for all that wait', { buffered: true }, async (t) => {
  const { issuer, service } = await start(t)
  issuer.behaviour.discovery = 'hanging'
  const tokens = await Promise.all(Array.from({ length: 3 }, () => issuer.token()))
  for (const answer of await Promise.all(tokens.map((token) => list(service, token)))) isUnavailable(t, answer, 'hanging')
  t.equal(issuer.requests.discovery, 1)
  issuer.behaviour.discovery = 'up'
  t.equal((await list(service, await issuer.token())).status, 200, 'it is back')
})

t.test("the issuer's keys are fetched once for many requests", { buffered: true }, async (t) => {
  const { issuer, service } = await start(t)
  const first = await Promise.all(Array.from({ length: 8 }, async () => list(service, await issuer.token())))
  t.same(first.map(({ status }) => status), Array(8).fill(200), 'requests that come together')
  for (let i = 0; i < 5; i++) t.equal((await list(service, await issuer.token())).status, 200)
  t.same(issuer.requests, { discovery: 1, jwks: 1 })
})

t.test('nothing is asked of the issuer before a token of its own comes', { buffered: true }, async (t) => {
  const { issuer, service } = await start(t)
  t.equal((await list(service, await service.token())).status, 200)
  t.equal((await list(service, await issuer.token({ iss: 'https://login.example.com' }))).status, 401)
  t.same(issuer.requests, { discovery: 0, jwks: 0 })
})

t.test('with OIDC_JWKS_URL there is no discovery', { buffered: true }, async (t) => {
  const issuer = await startIssuer(t)
  const service = await startService(t, { OIDC_ISSUER: issuer.url, OIDC_JWKS_URL: `${issuer.url}/jwks` }, database)
  t.equal((await list(service, await issuer.token())).status, 200)
  t.same(issuer.requests, { discovery: 0, jwks: 1 })
})

t.test('after a rotation tokens of the new key are accepted and those of a removed key refused', { buffered: true }, async (t) => {
  const { issuer, service } = await start(t, { OIDC_JWKS_COOLDOWN: '1s' })
  const [old] = issuer.keys
  t.equal((await list(service, await issuer.token())).status, 200)
  const next = await makeKey()
  issuer.keys.unshift(next)
  t.equal((await settled(service, issuer)).status, 200, 'the new key')
  t.equal((await list(service, await issuer.token({}, old))).status, 200, 'the old key, which is still in the set')

  issuer.keys.splice(0, 2, await makeKey())
  t.equal((await settled(service, issuer)).status, 200, 'the newest key')
  for (const key of [old, next]) {
    const answer = await list(service, await issuer.token({}, key))
    t.match(answer, { status: 401, body: { code: 'unauthenticated' } }, 'a removed key')
  }
})

t.test('keys are fetched again when they are too old, so a removed key ends without another one coming', { buffered: true }, async (t) => {
  const { issuer, service } = await start(t, { OIDC_JWKS_MAX_AGE: '1s' })
  const kept = await makeKey()
  const removed = issuer.keys[0]!
  issuer.keys.push(kept)
  t.equal((await list(service, await issuer.token({}, removed))).status, 200)
  issuer.keys.splice(0, 1)
  const ended = await eventually(async () => list(service, await issuer.token({}, removed)), ({ status }) => status === 401)
  t.equal(ended.status, 401)
  t.equal((await list(service, await issuer.token({}, kept))).status, 200)
})

t.test('a token that has been checked before ends with its issuer\'s key, and with its own end', { buffered: true }, async (t) => {
  const refused = ({ status }: Answer) => status === 401
  const { issuer, service } = await start(t, { OIDC_JWKS_MAX_AGE: '1s', OIDC_JWKS_COOLDOWN: '1s', OIDC_CLOCK_TOLERANCE: '1s' })
  const [withdrawn, ending] = [await issuer.token(), await issuer.token({ exp: Math.floor(Date.now() / 1000) + 3 })]
  for (const token of [withdrawn, ending]) t.equal((await list(service, token)).status, 200)
  t.equal((await list(service, withdrawn)).status, 200, 'again')
  issuer.keys.splice(0, 1, await makeKey())
  t.equal((await eventually(() => list(service, withdrawn), refused)).status, 401)
  t.equal((await eventually(() => list(service, ending), refused)).status, 401)

  const builtin = await startService(t, { OIDC_CLOCK_TOLERANCE: '1s' }, database)
  const short = await signOperatorToken(builtin.config, { org: 'acme', scopes: ['keys:read'], subject: 'alice', ttlSeconds: 3 })
  t.equal((await list(builtin, short)).status, 200)
  t.equal((await eventually(() => list(builtin, short), refused)).status, 401)
})

t.test('tokens of made-up keys do not make a request to the issuer each', { buffered: true }, async (t) => {
  const { issuer, service } = await start(t)
  t.equal((await list(service, await issuer.token())).status, 200)
  for (let i = 0; i < 5; i++) t.equal((await list(service, await issuer.token({}, await makeKey()))).status, 401)
  t.same(issuer.requests, { discovery: 1, jwks: 1 }, 'the cooldown has not passed')
})

t.test('an issuer that is out of order is not a token that is wrong, and is asked again', { buffered: true }, async (t) => {
  const broken: [Document, Behaviour][] = [
    ['discovery', 'down'], ['discovery', 'error'], ['discovery', 'not_json'], ['discovery', 'wrong'], ['discovery', 'truncated'],
    ['jwks', 'down'], ['jwks', 'error'], ['jwks', 'not_json'], ['jwks', 'wrong'], ['jwks', 'truncated'],
  ]
  const { issuer, service } = await start(t)
  for (const [document, behaviour] of broken) {
    const fresh = document === 'discovery' ? await start(t) : { issuer, service }
    fresh.issuer.behaviour[document] = behaviour
    isUnavailable(t, await list(fresh.service, await fresh.issuer.token()), `${document} ${behaviour}`)
    t.ok(fresh.issuer.requests[document] > 0, 'it was asked')
    t.equal((await list(fresh.service, await fresh.service.token())).status, 200, "the built-in issuer's tokens work meanwhile")
    fresh.issuer.behaviour[document] = 'up'
    if (document === 'discovery') t.equal((await list(fresh.service, await fresh.issuer.token())).status, 200, 'it is back')
  }
  t.equal((await list(service, await issuer.token())).status, 200, 'it is back')
  t.equal(issuer.requests.discovery, 1, 'a key set that cannot be fetched is not looked up again')
})

t.test('keys that are known outlive an issuer that goes down', { buffered: true }, async (t) => {
  const { issuer, service } = await start(t)
  t.equal((await list(service, await issuer.token())).status, 200)
  Object.assign(issuer.behaviour, { discovery: 'down', jwks: 'down' })
  t.equal((await list(service, await issuer.token())).status, 200)
  t.equal((await list(service, await issuer.token({ aud: 'billing' }))).status, 401)
})

t.test('a discovery document that names no key set to trust is not followed', { buffered: true }, async (t) => {
  // 0.0.0.0 reaches the issuer and is not one of the loopback's names.
  for (const jwks_uri of ['insecure', undefined, 42, 'jwks', 'file:///etc/passwd', 'data:application/json,{"keys":[]}']) {
    const { issuer, service } = await start(t)
    issuer.discovery['jwks_uri'] = jwks_uri === 'insecure' ? `${issuer.url.replace('127.0.0.1', '0.0.0.0')}/jwks` : jwks_uri
    isUnavailable(t, await list(service, await issuer.token()), String(jwks_uri))
    t.same(issuer.requests, { discovery: 1, jwks: 0 })
  }
})

async function start(t: Test, environment = {}): Promise<{ issuer: Issuer; service: Service }> {
  const issuer = await startIssuer(t)
  return { issuer, service: await startService(t, { OIDC_ISSUER: issuer.url, ...environment }, database) }
}

async function list({ call }: Service, token: string): Promise<Answer> {
  return call('GET', '/v1/keys', { token })
}

function isUnavailable(t: Test, { status, headers, body }: Answer, what: string): void {
  t.match({ status, headers, body }, { status: 503, headers: { 'retry-after': /^\d+$/ }, body: { code: 'issuer_unavailable' } }, what)
  t.equal(headers['www-authenticate'], undefined)
}

/** The answer to a token of the issuer's newest key, once the cooldown lets the service fetch it. */
function settled(service: Service, issuer: Issuer): Promise<Answer> {
  return eventually(async () => list(service, await issuer.token()), ({ status }) => status === 200)
}

/** The first answer that is the right one, or the last one of many. */
async function eventually(ask: () => Promise<Answer>, isRight: (answer: Answer) => boolean): Promise<Answer> {
  let answer = await ask()
  for (let i = 0; i < 400 && !isRight(answer); i++) {
    await setTimeout(25)
    answer = await ask()
  }
  return answer
}
