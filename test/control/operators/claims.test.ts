import t, { type Test } from 'tap'
import { createDatabase } from '../../helpers/database.js'
import { startIssuer, type Claims } from '../../helpers/issuer.js'
import { startService, type Answer, type Service } from '../../helpers/service.js'

const issuer = await startIssuer(t)
const service = await startService(t, { OIDC_ISSUER: issuer.url }, await createDatabase(t))

t.test('a token without an organization is refused', async (t) => {
  for (const org_id of [undefined, null, '', 42, true, ['acme'], { id: 'acme' }, 'ac me', 'acme\n', 'acmé', '\u0000', 'a'.repeat(129)])
    isRefused(t, await list(service, { org_id }), 'org_id', JSON.stringify(org_id) ?? 'none')
  for (const org_id of ['acme', 'a', '9f1c', 'org_01HV:eu/1', 'a'.repeat(128)]) t.equal((await list(service, { org_id })).status, 200, org_id)
})

t.test('scopes come as text or as a list', async (t) => {
  for (const scope of ['keys:read', 'openid keys:read', 'openid  keys:read email ', ['keys:read'], ['openid', 'keys:read']])
    t.equal((await list(service, { scope })).status, 200, JSON.stringify(scope))
})

t.test('scopes that are not of this service allow nothing', async (t) => {
  const scopes = [undefined, null, '', [], 'openid', 'keys', 'keys:*', '*', 'KEYS:READ', 'keys:read,audit:read', 'keys:read:all', ['keys:read audit:read'], ['constructor'], 'audit:read']
  for (const scope of scopes) {
    const answer = await list(service, { scope })
    t.match(answer, { status: 403, body: { code: 'insufficient_scope' } }, JSON.stringify(scope) ?? 'none')
  }
})

t.test('a scope claim that is neither text nor a list of it is refused', async (t) => {
  for (const scope of [42, true, { 'keys:read': true }, ['keys:read', 1], [null], [['keys:read']]])
    isRefused(t, await list(service, { scope }), 'scope', JSON.stringify(scope))
})

t.test('the crews claim narrows: absent is all, an empty list is none', async (t) => {
  const identity = { org: 'crews-of-claims' }
  const { key } = await service.issue({ mecha: 'sales^acmecrew' }, identity)
  await service.issue({ mecha: 'sales^globexcrew' }, identity)
  const mechas = async (crews: unknown) => {
    const { status, body } = await list(service, { org_id: 'crews-of-claims', crews })
    return status === 200 ? body.keys.map(({ mecha }: { mecha: string }) => mecha).sort() : status
  }
  t.same(await mechas(undefined), ['sales^acmecrew', 'sales^globexcrew'])
  t.same(await mechas([]), [])
  t.same(await mechas(['acmecrew']), ['sales^acmecrew'])
  t.same(await mechas(['acmecrew', 'globexcrew', 'nobodys']), ['sales^acmecrew', 'sales^globexcrew'])
  t.same(await mechas(['acme']), [], 'the start of a name is not the name')
  const none = await issuer.token({ org_id: 'crews-of-claims', crews: [] })
  t.equal((await service.call('GET', `/v1/keys/${key.id}`, { token: none })).status, 404)
})

t.test('a crews claim that is no list of crews is refused', async (t) => {
  for (const crews of [null, '', 'acmecorp', 42, true, {}, { 0: 'acmecorp' }, [1], [null], ['acmecorp', 1], [['acmecorp']], [''], ['*'], ['Acmecorp'], ['acme corp'], ['acme%'], ['acmecorp^'], ['a'.repeat(65)]])
    isRefused(t, await list(service, { crews }), 'crews', JSON.stringify(crews))
})

t.test('the names of the claims can be set, and then the others say nothing', async (t) => {
  const names = { OIDC_ORG_CLAIM: 'https://mecha.example.com/org', OIDC_SCOPE_CLAIM: 'permissions', OIDC_CREWS_CLAIM: 'teams' }
  const renamed = await startService(t, { OIDC_ISSUER: issuer.url, ...names }, service.database)
  const org = 'renamed-claims'
  await renamed.issue({ mecha: 'sales^renamedone' }, { org })
  await renamed.issue({ mecha: 'sales^renamedtwo' }, { org })
  const claims = { [names.OIDC_ORG_CLAIM]: org, permissions: ['keys:read'], teams: ['renamedone'] }
  const answer = await list(renamed, { ...claims, org_id: undefined, scope: undefined, crews: ['renamedtwo'] })
  t.same(answer.body.keys.map(({ mecha }: { mecha: string }) => mecha), ['sales^renamedone'])
  isRefused(t, await list(renamed, { permissions: ['keys:read'], org_id: org }), names.OIDC_ORG_CLAIM, 'the usual organization')
  t.equal((await list(renamed, { ...claims, permissions: undefined, scope: 'keys:read' })).status, 403, 'the usual scope')
  isRefused(t, await list(renamed, { ...claims, teams: 'renamedone' }), 'teams', 'crews that are no list')
})

async function list({ call }: Service, claims: Claims): Promise<Answer> {
  return call('GET', '/v1/keys', { token: await issuer.token(claims) })
}

function isRefused(t: Test, { status, headers, body }: Answer, claim: string, what: string): void {
  t.match({ status, headers, body }, {
    status: 401,
    headers: { 'www-authenticate': 'Bearer realm="mecha-keys", error="invalid_token"' },
    body: { code: 'unauthenticated' },
  }, what)
  t.ok(body.detail?.includes(claim), 'the claim is named')
}
