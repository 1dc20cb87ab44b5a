/**
 * Traefik's and Envoy's configurations against what their documentation says of each field that is used. Traefik is not
 * run anywhere; Envoy is, by programs.test.ts, where there is one.
 */

import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { Ajv } from 'ajv'
import t, { type Test } from 'tap'
import { parse } from 'yaml'
import { PACKAGE_ROOT } from '../../src/package-root.js'

const IDENTITY = ['X-Mecha-Id', 'X-Mecha-Handle', 'X-Mecha-Crew', 'X-Mecha-Org', 'X-Mecha-Scopes', 'X-Mecha-Key-Id']
const lower = (names: readonly string[]) => names.map((name) => name.toLowerCase())

const text = { type: 'string', minLength: 1 }
const texts = { type: 'array', items: text, minItems: 1 }
const integer = { type: 'integer', minimum: 0 }
const flag = { type: 'boolean' }
const seconds = { type: 'string', pattern: '^\\d+s$' }
const listOf = (items: object) => ({ type: 'array', items, minItems: 1 })
const mapOf = (value: object) => ({ type: 'object', additionalProperties: value, minProperties: 1 })
/** Fields by name, `!` behind those that have to be there, and no others. */
const fields = (properties: Record<string, object>) => {
  const named = Object.entries(properties).map(([name, schema]) => [name.replace('!', ''), schema] as const)
  return { type: 'object', additionalProperties: false, properties: Object.fromEntries(named), required: Object.keys(properties).filter((name) => name.endsWith('!')).map((name) => name.slice(0, -1)) }
}

t.test('traefik: what is configured is documented, and refers to what is there', async (t) => {
  const { http } = configuration('traefik.yml')
  const middleware = {
    oneOf: [
      fields({ 'headers!': fields({ 'customRequestHeaders!': mapOf({ type: 'string' }) }) }),
      fields({ 'forwardAuth!': fields({ 'address!': text, authRequestHeaders: texts, authResponseHeaders: texts }) }),
    ],
  }
  conforms(t, http, fields({
    'routers!': mapOf(fields({ 'rule!': text, priority: integer, middlewares: texts, 'service!': text })),
    'middlewares!': mapOf(middleware),
    'services!': mapOf(fields({ 'loadBalancer!': fields({ 'servers!': listOf(fields({ 'url!': text })) }) })),
  }))
  for (const [name, router] of Object.entries<any>(http.routers)) {
    t.ok(http.services[router.service], `${name}: its service`)
    t.same(router.middlewares.filter((one: string) => !http.middlewares[one]), [], `${name}: its middlewares`)
  }
})

t.test('traefik: nothing of a client\'s passes for an identity, and no key gets through', async (t) => {
  const { http } = configuration('traefik.yml')
  const removedBy = (name: string) => Object.entries<string>(http.middlewares[name].headers.customRequestHeaders).filter(([, value]) => value === '').map(([header]) => header)
  const { 'key-in-its-own-header': own, 'key-in-authorization': bearer } = http.routers
  t.same(own.middlewares, ['without-forgeries', 'mecha-keys-credential', 'mecha-keys', 'without-key'])
  t.same(bearer.middlewares, [...own.middlewares, 'without-authorization'])
  t.ok(own.priority > bearer.priority, 'the one with the narrower rule comes first')
  t.same(removedBy('without-key'), ['X-Mecha-Key', 'X-Gateway-Authorization'])
  t.same(removedBy('without-authorization'), ['Authorization'])
  const { address, authRequestHeaders, authResponseHeaders } = http.middlewares['mecha-keys'].forwardAuth
  t.match(address, /\/v1\/authz$/)
  t.same(authRequestHeaders, ['X-Mecha-Key', 'Authorization', 'X-Gateway-Authorization'])
  t.same(authResponseHeaders, IDENTITY)
  t.same(removedBy('without-forgeries').sort(), [...IDENTITY, 'X-Mecha-Key'].flatMap(spellings).sort(), 'every spelling with an underscore in it')
  t.match(http.middlewares['mecha-keys-credential'].headers.customRequestHeaders, { 'X-Gateway-Authorization': 'Bearer {{ env "GATEWAY_CREDENTIAL" }}' }, 'the credential is not in the file')
})

t.test('envoy: what is configured is documented, and refers to what is there', async (t) => {
  const { static_resources: resources } = configuration('envoy.yaml')
  const address = fields({ 'socket_address!': fields({ 'address!': text, 'port_value!': integer }) })
  const matchers = fields({ 'patterns!': listOf(fields({ 'exact!': text })) })
  const typed = (type: string, properties: Record<string, object>) => fields({ '@type!': { const: `type.googleapis.com/envoy.extensions.${type}` }, ...properties })
  const filter = (name: string, config: object) => fields({ 'name!': { const: name }, 'typed_config!': config })
  const filters = [
    filter('envoy.filters.http.lua', typed('filters.http.lua.v3.Lua', { 'default_source_code!': fields({ 'inline_string!': text }) })),
    filter('envoy.filters.http.ext_authz', typed('filters.http.ext_authz.v3.ExtAuthz', {
      failure_mode_allow: flag, status_on_error: fields({ 'code!': { enum: ['ServiceUnavailable'] } }), allowed_headers: matchers,
      'http_service!': fields({
        'server_uri!': fields({ 'uri!': text, 'cluster!': text, 'timeout!': seconds }), path_prefix: text,
        authorization_request: fields({ headers_to_add: listOf(fields({ 'key!': text, 'value!': text })) }),
        authorization_response: fields({ allowed_upstream_headers: matchers, allowed_client_headers: matchers }),
      }),
    })),
    filter('envoy.filters.http.router', typed('filters.http.router.v3.Router', {})),
  ]
  const manager = typed('filters.network.http_connection_manager.v3.HttpConnectionManager', {
    'stat_prefix!': text, common_http_protocol_options: fields({ headers_with_underscores_action: { enum: ['ALLOW', 'REJECT_REQUEST', 'DROP_HEADER'] } }), upgrade_configs: listOf(fields({ 'upgrade_type!': text })), stream_idle_timeout: seconds,
    'route_config!': fields({ 'virtual_hosts!': listOf(fields({ 'name!': text, 'domains!': texts, request_headers_to_remove: texts, 'routes!': listOf(fields({ 'match!': fields({ 'prefix!': text }), 'route!': fields({ 'cluster!': text }) })) })) }),
    'http_filters!': { type: 'array', items: filters, minItems: filters.length, maxItems: filters.length },
  })
  const options = typed('upstreams.http.v3.HttpProtocolOptions', { 'explicit_http_config!': fields({ 'http_protocol_options!': fields({}) }), common_http_protocol_options: fields({ idle_timeout: seconds }) })
  const endpoints = listOf(fields({ 'lb_endpoints!': listOf(fields({ 'endpoint!': fields({ 'address!': address }) })) }))
  conforms(t, resources, fields({
    'listeners!': listOf(fields({ 'name!': text, 'address!': address, 'filter_chains!': listOf(fields({ 'filters!': listOf(filter('envoy.filters.network.http_connection_manager', manager)) })) })),
    'clusters!': listOf(fields({
      'name!': text, 'type!': { enum: ['STATIC', 'STRICT_DNS'] }, connect_timeout: seconds,
      typed_extension_protocol_options: fields({ 'envoy.extensions.upstreams.http.v3.HttpProtocolOptions': options }),
      'load_assignment!': fields({ 'cluster_name!': text, endpoints }),
    })),
  }))
  const clusters = resources.clusters.map(({ name }: { name: string }) => name)
  const named = [...JSON.stringify(resources).matchAll(/"cluster(?:_name)?":"(\w+)"/g)].map((match) => match[1])
  t.same([...new Set(named)].sort(), [...clusters].sort())
})

t.test('envoy: it fails closed, and hands on what mecha-keys says and nothing else', async (t) => {
  const { static_resources: resources } = configuration('envoy.yaml')
  const { http_filters: [, { typed_config: authz }], route_config, common_http_protocol_options } = resources.listeners[0].filter_chains[0].filters[0].typed_config
  const names = (matchers: { patterns: { exact: string }[] }) => matchers.patterns.map(({ exact }) => exact)
  t.equal(authz.failure_mode_allow, false)
  t.equal(authz.http_service.path_prefix, '/v1/authz?request=')
  t.same(names(authz.allowed_headers), ['x-mecha-key', 'x-request-id'])
  t.same(names(authz.http_service.authorization_response.allowed_upstream_headers), lower(IDENTITY))
  t.same(authz.http_service.authorization_request.headers_to_add, [{ key: 'x-gateway-authorization', value: 'Bearer %ENVIRONMENT(GATEWAY_CREDENTIAL)%' }], 'the credential is not in the file')
  t.same(route_config.virtual_hosts[0].request_headers_to_remove, ['x-mecha-key'])
  t.equal(common_http_protocol_options.headers_with_underscores_action, 'DROP_HEADER')
})

function configuration(name: string) {
  return parse(readFileSync(join(PACKAGE_ROOT, 'examples', 'proxies', name), 'utf8'))
}

function conforms(t: Test, value: unknown, schema: object): void {
  const valid = new Ajv({ allErrors: true }).compile(schema)
  t.ok(valid(value), 'as documented', { errors: valid.errors })
}

/** A name with underscores for some of its hyphens, or for all of them. */
function spellings(name: string): string[] {
  const [first = '', ...rest] = name.split('-')
  const all = rest.reduce<string[]>((some, word) => some.flatMap((one) => [`${one}-${word}`, `${one}_${word}`]), [first])
  return all.filter((one) => one !== name)
}
