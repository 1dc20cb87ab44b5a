/** What is measured. A case is one request, sent again and again to the service and to the ceiling alike. */

export interface Case {
  readonly name: string
  readonly method: 'GET' | 'POST'
  readonly path: string
  readonly credential: string
  /** `{n}` in it is replaced by a number that no other request has. */
  readonly body?: string
}

/** Where the service is, and what it takes to use it. */
export interface Service {
  readonly url: string
  readonly operator: string
  readonly gateway: string
}

/** Fewer than the service's limit of a Mecha's keys, which is raised for this (`sides.ts`), and more than a page holds. */
const LISTED_KEYS = 60

export async function prepareCases(service: Service): Promise<Case[]> {
  const { operator, gateway } = service
  const key = await issue(service, 'verified^bench')
  for (let i = 0; i < LISTED_KEYS; i++) await issue(service, 'listed^bench')
  const mistyped = key.slice(0, -20) + key.slice(-19) + 'x'
  await expectVerdict(service, key, true)
  await expectVerdict(service, mistyped, false)
  return [
    { name: 'verify, a valid key', method: 'POST', path: '/v1/verify', credential: gateway, body: JSON.stringify({ key }) },
    { name: 'verify, a malformed key', method: 'POST', path: '/v1/verify', credential: gateway, body: JSON.stringify({ key: mistyped }) },
    { name: 'issue, a Mecha each', method: 'POST', path: '/v1/keys', credential: operator, body: JSON.stringify({ mecha: 'm{n}^bench' }) },
    { name: 'list, 50 of one Mecha', method: 'GET', path: '/v1/keys?mecha=listed%5Ebench', credential: operator },
  ]
}

async function issue({ url, operator }: Service, mecha: string): Promise<string> {
  const { plaintext_key } = (await post(`${url}/v1/keys`, operator, { mecha })) as { plaintext_key: string }
  return plaintext_key
}

/** A key that is refused is answered with 200 too: that a case measures what it says is seen here, once. */
async function expectVerdict({ url, gateway }: Service, key: string, expected: boolean): Promise<void> {
  const { valid } = (await post(`${url}/v1/verify`, gateway, { key })) as { valid: boolean }
  if (valid !== expected) throw new Error(`a key that is ${expected ? '' : 'not '}valid was found ${valid ? '' : 'not '}valid`)
}

async function post(url: string, credential: string, body: object): Promise<unknown> {
  const headers = { authorization: `Bearer ${credential}`, 'content-type': 'application/json' }
  const response = await fetch(url, { method: 'POST', headers, body: JSON.stringify(body), signal: AbortSignal.timeout(10_000) })
  if (!response.ok) throw new Error(`POST ${url} answered ${response.status}`)
  return response.json()
}
