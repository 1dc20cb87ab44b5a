import { randomBytes } from 'node:crypto'
import { once } from 'node:events'
import { readFileSync } from 'node:fs'
import { METHODS } from 'node:http'
import { connect, type AddressInfo } from 'node:net'
import { join } from 'node:path'
import { text } from 'node:stream/consumers'
import fastJsonStringify, { type Schema } from 'fast-json-stringify'
import t from 'tap'
import { Type as TypeBox } from 'typebox'
import { SECRET_FIELDS } from '../../src/server/compose.js'
import { SECRET_HEADERS } from '../../src/http/headers.js'
import { Type } from '../../src/http/type.js'
import { createCompilers } from '../../src/http/validation.js'
import { PACKAGE_ROOT } from '../../src/package-root.js'
import { compilerOf, contractOf, operationsOf, successOf } from '../helpers/contract.js'
import { startService, type CallOptions } from '../helpers/service.js'
import { contractFiles } from '../tools/documents.js'

/** Served, and not in the contract. */
const HIDDEN = [
  'GET /', 'GET /openapi.json', 'GET /metrics', 'GET /errors/{code}',
  'GET /docs', 'GET /docs/', 'GET /docs/static/{file}',
  // What is in the contract as GET.
  ...METHODS.filter((method) => !['GET', 'HEAD', 'CONNECT'].includes(method)).map((method) => `${method} /v1/authz`),
]

/** Answers that say it all in their headers. */
const BODILESS = ['GET /v1/authz 200']

t.test('the committed contract is what the routes say', async (t) => {
  for (const [name, text] of Object.entries(await contractFiles())) {
    const committed = readFileSync(join(PACKAGE_ROOT, 'openapi', name), 'utf8')
    t.ok(committed === text, `openapi/${name} is up to date: run npm run docs`)
  }
})

t.test('every schema of a route can be compiled, which the service does when it is first needed', async (t) => {
  const compilers = createCompilers()
  let compiled = 0
  await startService(t, { AUTHZ_LISTEN: '127.0.0.1:0' }, undefined, {
    compilers: {
      buildValidator: () => (route) => {
        compiled++
        const validate = compilers.buildValidator()(route)
        validate(undefined)
        return validate
      },
      buildSerializer: (known) => (route) => {
        compiled++
        fastJsonStringify(route.schema as Schema, { schema: known })
        return compilers.buildSerializer(known)(route)
      },
    },
  })
  t.ok(compiled > 200, `${compiled} schemas`)
})

t.test('schemas are made as TypeBox makes them', async (t) => {
  const made = (T: typeof Type) => {
    const text = T.String({ pattern: '^a', description: 'text' })
    const fields = { text, flag: T.Optional(T.Boolean({ default: true })), none: T.Null(), one: T.Literal('one'), count: T.Integer({ minimum: 1 }), list: T.Optional(T.Array(text, { maxItems: 2 })) }
    return [
      T.Object(fields, { title: 'Fields', additionalProperties: false }), T.Object({}), T.Object({ flag: fields.flag }), T.Union([T.Literal(1, { title: 'One' }), T.Literal(true)]),
      T.Record(T.String(), T.Object(fields)), T.Ref('Key#', { description: 'a key' }), T.Unsafe<string>({ type: ['string', 'null'] }), T.Optional(T.Ref('Key#')), T.Union([T.Ref('Key#'), T.Null()], { title: 'Perhaps' }),
    ]
  }
  t.same(JSON.stringify(made(Type)), JSON.stringify(made(TypeBox)))
})

t.test('the contract', async (t) => {
  const { app } = await startService(t)
  const contract = contractOf()
  const operations = operationsOf(contract)
  const compile = compilerOf(contract)

  t.test('is OpenAPI 3.1 with a title and a version', async (t) => {
    t.match(contract, { openapi: /^3\.1\./, info: { title: 'mecha-keys', version: /^\d+\.\d+\.\d+/ } })
  })

  t.test('refers to nothing that is not there', async (t) => {
    const refs = [...JSON.stringify(contract).matchAll(/"\$ref":"([^"]*)"/g)].map((match) => match[1]!)
    t.ok(refs.length > 0)
    for (const ref of new Set(refs)) {
      const found = ref.replace(/^#\//, '').split('/').reduce<any>((place, name) => place?.[name], contract)
      t.type(found, 'object', ref)
    }
  })

  t.test('names every operation once, and says what it is and who may call it', async (t) => {
    const tags = contract.tags.map(({ name }) => name)
    t.equal(new Set(operations.map(({ operation }) => operation.operationId)).size, operations.length)
    for (const { name, operation } of operations) {
      t.match(operation, { operationId: /^[a-z][A-Za-z]+$/, summary: /\w/ }, name)
      t.ok(operation.tags.length === 1 && tags.includes(operation.tags[0]!), `${name} has a tag that is explained`)
      t.ok(Array.isArray(operation.security), `${name} says which credential it needs`)
      for (const scheme of operation.security.flatMap((one) => Object.keys(one))) t.ok(contract.components.securitySchemes[scheme], `${name}: ${scheme}`)
      if (operation.tags[0] === 'control') {
        t.same(operation.security, [{ operator: [] }], name)
        t.match(operation['x-scope'], /^[a-z]+:[a-z]+$/, `${name} names its scope`)
        t.ok(operation.description.includes(operation['x-scope']!), `${name} says so`)
      }
    }
  })

  t.test('describes every parameter, and has every part of every path', async (t) => {
    for (const { name, path, operation } of operations) {
      const parameters = operation.parameters ?? []
      const inPath = parameters.filter((one) => one.in === 'path').map((one) => one.name)
      t.same(inPath.sort(), [...path.matchAll(/\{(\w+)\}/g)].map((match) => match[1]).sort(), name)
      for (const parameter of parameters) t.match(parameter, { description: /\w/, schema: Object }, `${name} ${parameter.name}`)
      t.ok(parameters.every((one) => one.in !== 'path' || one.required), `${name} needs its path`)
    }
  })

  t.test('describes every answer, and has valid schemas and examples', async (t) => {
    for (const { name, method, path, operation } of operations) {
      t.ok(successOf(operation), name)
      const pointer = ['paths', path, method.toLowerCase()]
      for (const [index, { in: place, name: parameter, example }] of (operation.parameters ?? []).entries()) {
        const valid = compile(...pointer, 'parameters', String(index), 'schema')
        if (example !== undefined) t.ok(valid(example), `${name} ${parameter}: its example is valid`)
        t.ok(place === 'path' || example === undefined, `${name} ${parameter}: what tools would fill in unasked has no example`)
      }
      for (const [type, { example }] of Object.entries(operation.requestBody?.content ?? {})) {
        const valid = compile(...pointer, 'requestBody', 'content', type, 'schema')
        t.ok(valid(example), `${name}: the example body is valid`)
        t.equal(operation.requestBody!.required, !valid({}), `${name}: a body may be left out where it may be empty`)
      }
      for (const [status, { description, headers, content }] of Object.entries(operation.responses)) {
        t.notMatch(description, /^(Default Response|A problem)?$/, `${name} ${status} says what it means`)
        t.equal(Object.keys(content ?? {}).length === 0, BODILESS.includes(`${name} ${status}`), `${name} ${status} has a body`)
        for (const type of Object.keys(content ?? {})) t.doesNotThrow(() => compile(...pointer, 'responses', status, 'content', type, 'schema'), `${name} ${status}`)
        for (const header of Object.keys(headers ?? {})) t.match(header, /^[A-Z]/, `${name} ${status} ${header}`)
      }
    }
  })

  t.test('gives each error a sample of its own', async (t) => {
    const { examples } = contract.components
    for (const { name, path, method, operation } of operations)
      for (const [status, { description, content }] of Object.entries(operation.responses)) {
        const codes = status === 'default' ? ['internal_error'] : [...description.matchAll(/`(\w+)`:/g)].map((match) => match[1])
        if (codes.length === 0) continue
        for (const [type, media] of Object.entries(content ?? {})) {
          t.same(Object.keys(media.examples ?? {}), codes, `${name} ${status}`)
          const valid = compile('paths', path, method.toLowerCase(), 'responses', status, 'content', type, 'schema')
          for (const [code, { $ref }] of Object.entries(media.examples ?? {})) {
            const { value } = examples[$ref.split('/').at(-1)!]!
            t.match(value, { code, type: `/errors/${code}`, status: status === 'default' ? 500 : Number(status) }, `${name} ${status}`)
            t.ok(valid(value), `${name} ${status} ${code}: the sample is valid`)
          }
        }
      }
  })

  t.test('names what is spoken of, once, and uses every name', async (t) => {
    const names = Object.keys(contract.components.schemas)
    for (const name of ['Key', 'RevealedKey', 'Propagation', 'Valid', 'Refused', 'VerifyAnswer', 'VerifyBody', 'IssueBody', 'UpdateBody', 'Metadata', 'Problem', 'BrokenRule', 'TokenAnswer', 'Introspection']) t.ok(names.includes(name), name)
    const text = JSON.stringify(contract)
    for (const name of names) {
      t.ok(text.includes(`"#/components/schemas/${name}"`), `${name} is used`)
      t.equal(text.split(`"title":"${name}"`).length, 2, `${name} is there once`)
    }
    for (const { name, operation } of operations)
      for (const [type, { schema }] of Object.entries(operation.requestBody?.content ?? {})) t.match(schema, { $ref: /^#/ }, `${name} ${type}: the body has a name`)
  })

  t.test('says of each `key` whether it is a record or a plaintext', async (t) => {
    const { RevealedKey, VerifyBody, KeyToVerify, Key } = contract.components.schemas as Record<string, { description: string; properties: Record<string, { description: string }> }>
    t.match(RevealedKey!.description, /`key` is .* a record.* `plaintext_key` is the key itself/)
    for (const one of [VerifyBody!, KeyToVerify!]) t.match(one.properties['key']!.description, /plaintext.*`plaintext_key`.*record/)
    t.match(Key!.description, /record.*plaintext, is not in it/)
  })

  t.test('has no pattern that only some languages read', async (t) => {
    for (const [, pattern] of JSON.stringify(contract).matchAll(/"pattern":("(?:[^"\\\\]|\\\\.)*")/g)) t.notMatch(JSON.parse(pattern!), /\\[pPuk]|\(\?[^:]/, pattern!)
  })

  t.test('has everything that is served, but for what is hidden on purpose', async (t) => {
    const served = routesOf(app.printRoutes({ commonPrefix: false })).filter((route) => !route.startsWith('HEAD '))
    t.same(served.sort(), [...operations.map(({ name }) => name), ...HIDDEN].sort())
  })

  t.test('reveals a secret where one is made, and nowhere else', async (t) => {
    const revealing = operations.filter(({ operation }) => Object.values(operation.responses).some((one) => marksSecret(one, contract)))
    t.same(revealing.map(({ operation }) => operation.operationId).sort(), ['createGateway', 'exchangeKey', 'issueKey', 'rotateKey'])
  })
})

t.test('the fields that carry a secret are these', async (t) => {
  t.same(SECRET_FIELDS, ['access_token', 'actor_token', 'key', 'plaintext_key', 'subject_token', 'token'])
})

t.test('a header is compared in any spelling, and by the rule that the contract gives', async (t) => {
  const service = await startService(t)
  const headers = { 'IDEMPOTENCY-KEY': 'x'.repeat(256) }
  const answer = await service.call('POST', '/v1/keys', { token: await service.token(), body: { mecha: 'sales^acmecorp' }, headers })
  t.match(answer, { status: 400, body: { code: 'invalid_request', errors: [{ field: 'headers.idempotency-key', rule: 'maxLength' }] } })
})

t.test('a broken rule of a field that may be null is one error', async (t) => {
  const service = await startService(t)
  const answer = await service.call('POST', '/v1/keys', { token: await service.token(), body: { mecha: 'sales^acmecorp', expires_at: 'tomorrow' } })
  t.match(answer, { status: 400, body: { errors: [{ field: 'body.expires_at', rule: 'format' }] } })
  t.equal(answer.body.errors.length, 1)
})

t.test('no secret that is sent, wherever it is put, comes back in an error or is logged', async (t) => {
  const service = await startService(t, { LOG_LEVEL: 'trace' })
  const operator = await service.token()
  const gateway = await service.gateway()
  const { plaintext_key: issued } = await service.issue()
  // One that nothing could recognise by its looks, and one that could be seen for what it is.
  const canary = `canary${randomBytes(24).toString('hex')}`
  const seen: string[] = []
  let sent = 0

  async function send(method: 'GET' | 'POST' | 'PATCH' | 'DELETE', url: string, options: CallOptions = {}): Promise<void> {
    const { text, headers } = await service.call(method, url, options)
    // What is no URL is answered before there is a request to log.
    if (!url.startsWith('/%')) sent++
    seen.push(text, JSON.stringify(headers))
  }

  for (const secret of [canary, issued, gateway]) {
    const json = { 'content-type': 'application/json' }
    for (const field of SECRET_FIELDS) {
      for (const [url, token] of [['/v1/verify', gateway], ['/v1/verify/batch', gateway], ['/v1/nonces', gateway], ['/v1/usage', gateway], ['/v1/introspect', gateway], ['/v1/token', gateway], ['/v1/keys', operator], ['/v1/gateways', operator]] as const) {
        await send('POST', url, { token, body: { [field]: secret } })
        await send('POST', url, { token, body: { [field]: { deep: [secret] }, mecha: secret, name: [secret], scopes: secret } })
        await send('POST', url, { token, body: `{"${field}":"${secret}`, headers: json })
        await send('POST', url, { token, body: `{"${field}":"${secret}",}`, headers: json })
        await send('POST', url, { token, body: `{"__proto__":{"${field}":"${secret}"}}`, headers: json })
        await send('POST', url, { token, body: secret, headers: json })
        await send('POST', url, { token, body: `${field}=${secret}`, headers: { 'content-type': 'application/x-www-form-urlencoded' } })
        await send('POST', url, { token, body: `${field}=a&${field}=${secret}&grant_type=${secret}&subject_token_type=${secret}&scope=${secret}&resource=${secret}`, headers: { 'content-type': 'application/x-www-form-urlencoded' } })
        await send('POST', url, { token, body: secret, headers: { 'content-type': `text/${secret}` } })
        await send('POST', url, { token, body: { [field]: secret, pad: 'x'.repeat(20_000) } })
        await send('POST', url, { body: { [field]: secret } })
      }
      await send('GET', `/v1/keys?${field}=${secret}`, { token: operator })
      await send('GET', `/v1/events?after=${secret}`, { token: operator })
      await send('GET', `/livez?${field}=${secret}`)
    }
    // The one route that would end what it is sent: in every form but the right one.
    for (const body of [`token=${secret}&token=${secret}`, `${secret}=${secret}`, `token_type_hint=${secret}`]) await send('POST', '/v1/revoke-token', { body, headers: { 'content-type': 'application/x-www-form-urlencoded' } })
    for (const type of ['application/json', `text/${secret}`]) await send('POST', '/v1/revoke-token', { body: JSON.stringify({ token: secret }), headers: { 'content-type': type } })
    await send('POST', `/v1/revoke-token?token=${secret}`)
    for (const header of SECRET_HEADERS) {
      await send('GET', '/v1/keys', { token: operator, headers: { [header]: secret } })
      await send('GET', '/v1/keys', { headers: { [header]: `Bearer ${secret}` } })
      await send('POST', '/v1/verify', { headers: { [header]: `Bearer ${secret}` }, body: { key: secret } })
      await send('GET', '/nowhere', { headers: { [header]: `Bearer ${secret}` } })
    }
    for (const path of ['/v1/keys/', '/v1/gateways/', '/errors/', '/', '/docs/', `/${'x'.repeat(300)}`, '/%']) {
      await send('GET', `${path}${secret}`, { token: operator })
      await send('DELETE', `${path}${secret}`, { token: operator })
    }
    await send('POST', `/v1/keys/${secret}/revoke`, { token: operator, body: { reason: 'x' } })
    await send('POST', `/v1/mechas/${secret}/revoke-keys`, { token: operator })
  }
  // Where only a key has no business: the name of a field, a note, the request's id.
  for (const secret of [issued, gateway]) {
    await send('POST', '/v1/verify', { token: gateway, body: { key: 'x', [secret]: 1 } })
    await send('POST', '/v1/verify', { token: gateway, body: { key: 'x', mecha: secret, scopes: [secret] } })
    await send('POST', '/v1/verify/batch', { token: gateway, body: { keys: [{ key: 'x', mecha: secret, scopes: [secret] }, { [secret]: 1 }] } })
    await send('POST', '/v1/usage', { token: gateway, body: { uses: [{ key_id: secret, used_at: secret }, { [secret]: secret }] } })
    await send('POST', '/v1/nonces', { token: gateway, body: { key_id: secret, nonce: `${secret}|`, expires_at: secret } })
    await send('POST', '/v1/keys', { token: operator, body: { mecha: 'sales^acmecorp', [secret]: 1 } })
    await send('POST', '/v1/keys', { token: operator, body: { mecha: 'sales^acmecorp', name: secret, metadata: { [secret]: secret } } })
    await send('GET', `/v1/keys?${secret}=1`, { token: operator })
    await send('GET', '/livez', { headers: { 'x-request-id': secret } })
  }
  for (const line of [`GET /${canary} HTTP/1.1\r\nHost: x\r\nX-Mecha-Key: ${canary}${'x'.repeat(20_000)}\r\n\r\n`, `GET /${issued} nonsense ${canary}\r\n\r\n`])
    seen.push(await sendRaw(line))
  for (const field of [...SECRET_FIELDS, ...SECRET_HEADERS])
    for (const line of [{ [field]: canary }, { a: { [field]: canary } }, { a: { b: { [field]: canary } } }, { a: { b: { c: { [field]: canary } } } }]) service.app.log.info(line, issued)
  // Last, an error that nobody foresaw, about a key that is not in memory.
  const unseen = (await service.issue()).plaintext_key
  await service.database.db.schema.alterTable('keys').renameTo('elsewhere').execute()
  await send('POST', '/v1/verify', { token: gateway, body: { key: unseen } })

  const logs = service.logs()
  t.equal(logs.split('\n').filter((line) => line.includes('"msg":"request"')).length, sent + 3, 'every request is logged, the three that set this up too')
  t.match(logs, /"msg":"request failed"/, 'and so is the error')
  t.ok(logs.includes('[redacted]') && logs.includes('[redacted key]'))
  for (const [what, secret] of Object.entries({ canary, 'key that was issued': issued, 'gateway credential': gateway, 'operator token': operator, hash: '$argon2id$' })) {
    t.notOk(logs.includes(secret), `no ${what} in the log`)
    t.notOk(seen.some((one) => one.includes(secret)), `no ${what} in an answer`)
  }

  async function sendRaw(request: string): Promise<string> {
    if (!service.app.server.listening) await service.app.listen({ port: 0 })
    const socket = connect((service.app.server.address() as AddressInfo).port, '127.0.0.1')
    await once(socket, 'connect')
    socket.write(request)
    return text(socket)
  }
})

/** `GET /v1/keys/{id}` and the like, from Fastify's drawing of its routes. */
function routesOf(drawing: string): string[] {
  const parents: string[] = []
  return drawing.split('\n').filter(Boolean).flatMap((line) => {
    const [, indent, segment, methods] = /^([│ ]*)[├└]── (\S+) \(([^)]*)\)$/.exec(line)!
    const depth = indent!.length / 4
    const path = (depth > 0 ? parents[depth - 1]! : '') + segment!
    parents[depth] = path
    return methods!.split(', ').map((method) => `${method} ${path.replace(/:(\w+)/g, '{$1}')}`)
  })
}

/** Whether a field marked as a secret is in a schema or in what it refers to. */
function marksSecret(schema: unknown, contract: ReturnType<typeof contractOf>): boolean {
  if (typeof schema !== 'object' || schema === null) return false
  const { 'x-secret': marked, $ref } = schema as { 'x-secret'?: boolean; $ref?: string }
  if (marked) return true
  if ($ref) return marksSecret(contract.components.schemas[$ref.split('/').at(-1)!], contract)
  return Object.values(schema).some((part) => marksSecret(part, contract))
}
