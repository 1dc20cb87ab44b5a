import { generateKeyPairSync, randomBytes } from 'node:crypto'
import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import proxyAddr from '@fastify/proxy-addr'
import t, { type Test } from 'tap'
import { describeConfig, loadConfig, requireRoots, requireServing, settingsTable, suspectNames, type Environment, type Settings } from '../src/config.js'
import { ConfigError } from '../src/errors.js'

const secret = () => randomBytes(32).toString('base64url')
const privateKey = () => generateKeyPairSync('ed25519').privateKey.export({ type: 'pkcs8', format: 'pem' }).toString()

/** What reading the settings refuses with, which must be one line. */
function refusal(t: Test, work: () => unknown): string {
  try {
    work()
  } catch (error) {
    t.type(error, ConfigError)
    const { message } = error as Error
    t.notMatch(message, /\n/, 'one line')
    return message
  }
  t.fail('nothing was refused')
  return ''
}

/** A file of this test's own. */
function file(t: Test, name: string, content: string): string {
  const path = join(t.testdir(), name)
  writeFileSync(path, content)
  return path
}

t.test('with nothing set, every setting has its default', async (t) => {
  const config = loadConfig({})
  t.match(config, { HOST: '127.0.0.1', PORT: 8080, PLANES: 'both', DATABASE_TIMEOUT: 5, IDEMPOTENCY_TTL: 86_400, ROTATE_MAX_OVERLAP: 30 * 86_400, BUILTIN_ISSUER: 'off' })
  t.same(config.OIDC_ALGORITHMS, ['RS256', 'PS256', 'ES256', 'EdDSA'])
  for (const { name, default: written } of settingsTable())
    t.equal(config[name as keyof typeof config] === undefined, written === undefined, `${name} is there if it has a default`)
  t.throws(() => Object.assign(config, { PORT: 1 }), TypeError, 'settings are frozen')
})

t.test('a time may be written in seconds, minutes, hours or days', async (t) => {
  for (const [written, seconds] of [['90', 90], ['90s', 90], ['15m', 900], ['12h', 43_200], ['30d', 2_592_000], [' 1h ', 3600]] as const)
    t.equal(loadConfig({ KEY_MAX_TTL: written }).KEY_MAX_TTL, seconds, written)
})

t.test('a time that ends in a timer has a maximum, which the table shows and no timer falls short of', async (t) => {
  const bounded = settingsTable().filter(({ most }) => most !== undefined)
  for (const name of ['REQUEST_TIMEOUT', 'SHUTDOWN_TIMEOUT', 'DATABASE_TIMEOUT', 'REVOCATION_MAX_STALENESS', 'USAGE_FLUSH_INTERVAL'])
    t.ok(bounded.some((one) => one.name === name), name)
  for (const { name, most } of bounded) {
    const seconds = loadConfig({ [name]: most })[name as keyof Settings] as number
    t.ok(seconds * 1000 < 2 ** 31, `${name}: Node.js waits as long as that`)
    t.equal(refusal(t, () => loadConfig({ [name]: String(seconds + 1) })), `${name} must be a time of ${most} at most`)
    t.equal(refusal(t, () => loadConfig({ [name]: '30d' })), `${name} must be a time of ${most} at most`)
  }
})

t.test('a wrong value is refused with the name of the setting and its rule, and never repeated', async (t) => {
  const looksSecret = `hunter2-${secret()}`
  const wrong: [name: string, rule: RegExp, values: string[]][] = [
    ['PORT', /a whole number from 0 to 65535$/, ['65536', '-1', '8.5', '0x50', '1e3', looksSecret]],
    ['DATABASE_POOL_SIZE', /a whole number from 1 to 1000$/, ['0', '1001', looksSecret]],
    ['DATABASE_TIMEOUT', /a time of at least one second/, ['0', '0s', '-5s', '1.5h', '1w', '5 s', '999999999d', looksSecret]],
    ['PLANES', /one of control, runtime, both$/, ['Both', 'all', looksSecret]],
    ['AUTHZ_LISTEN', /an address like 127\.0\.0\.1:8081/, ['8081', ':8081', '127.0.0.1', '127.0.0.1:', '127.0.0.1:65536', '::1:8081', 'http://127.0.0.1:8081', '127.0.0.1:8081/v1', 'unix:authz.sock', 'unix:', looksSecret]],
    ['AUTHZ_ORG', /an organization's id/, ['ac me', 'ä', 'x'.repeat(129)]],
    ['AUTHZ_UNAVAILABLE', /one of 403, 503$/, ['500', '401', 'yes', looksSecret]],
    ['LOG_LEVEL', /one of fatal, /, ['verbose', looksSecret]],
    ['HASH_PROFILE', /one of high-entropy, owasp$/, ['bcrypt', looksSecret]],
    ['BUILTIN_ISSUER', /one of on, off$/, ['true', '1', looksSecret]],
    ['OIDC_ALGORITHMS', /one of RS256/, ['HS256', 'none', `RS256,${looksSecret}`]],
    ['OIDC_ALGORITHMS', /must not have an empty item$/, ['RS256,,ES256', 'RS256,']],
    ['OIDC_ISSUER', /an https URL/, ['http://issuer.example', 'issuer.example', 'ftp://localhost/', looksSecret]],
    ['OIDC_JWKS_URL', /an https URL/, ['http://10.0.0.1/jwks', looksSecret]],
    ['CORS_ORIGINS', /origins like https/, ['*', 'https://console.example.com/', 'https://*.example.com/x', looksSecret]],
    ['KEY_PREFIX', /one to three words of lower case letters/, ['Mecha', '1st', 'a_b_c_d', '_a', 'a__b', 'a-b', looksSecret]],
    ['GATEWAY_PREFIX', /one to three words of lower case letters/, ['x'.repeat(17), looksSecret]],
    ['MECHA_KEYS_URL', /an http or https URL$/, ['127.0.0.1:8080', 'file:///etc/passwd', looksSecret]],
    ['PUBLIC_URL', /an http or https URL without query, fragment and password$/, ['keys.example.com', 'ftp://keys.example.com', 'https://keys.example.com/?a=b', 'https://keys.example.com/?', 'https://keys.example.com/#', `https://user:${looksSecret}@keys.example.com`, looksSecret]],
    ['DATABASE_URL', /a URL like postgres:/, [`mysql://root:${looksSecret}@db/x`, `postgres://db.example/${looksSecret}`, looksSecret]],
    ['TRUST_PROXY', /addresses of proxies like 10\.1\.2\.3, networks like/, ['true', '1', 'yes', '*', '10.0.0.0/0', '10.0.0.0/33', '::/0', 'fd00::/129', 'proxy.example.com', '10.0.0.0/', looksSecret]],
    ['ROOT_SECRETS', /32 or more characters without spaces/, [looksSecret.slice(0, 31), `${secret()},`, `${secret()} ${looksSecret}`, `${secret()},short`]],
    ['ROOT_SECRETS', /must not hold the same secret twice$/, [`${looksSecret},${looksSecret}`]],
    ['OTEL_EXPORTER_OTLP_ENDPOINT', /an http or https URL$/, ['collector:4318', 'grpc://collector:4317', looksSecret]],
    ['OTEL_EXPORTER_OTLP_HEADERS', /pairs like name=value/, [looksSecret, `authorization:${looksSecret}`, `a b=${looksSecret}`, `x=%0d%0a${looksSecret}`, `x=%${looksSecret}`]],
    ['OTEL_EXPORTER_OTLP_HEADERS', /must not have an empty item$/, [`x=${looksSecret},`]],
    ['OTEL_TRACES_SAMPLER', /one of always_on, /, ['jaeger_remote', looksSecret]],
    ['OTEL_TRACES_SAMPLER_ARG', /a number from 0 to 1$/, ['1.1', '-0.5', '1e-3', '.', looksSecret]],
    ['OTEL_SDK_DISABLED', /one of true, false$/, ['1', looksSecret]],
    ['BUILTIN_ISSUER_KEY', /a PKCS #8 private key in PEM$/, [looksSecret, privateKey().replaceAll('PRIVATE', 'PUBLIC')]],
  ]
  for (const [name, rule, values] of wrong)
    for (const value of values) {
      const message = refusal(t, () => loadConfig({ [name]: value }))
      t.match(message, new RegExp(`^${name} must `), name)
      t.match(message, rule, `${name}: the rule`)
      // A short value can be a part of the rule: what must never be repeated is one that could be a secret.
      for (const word of value.split(/[\s,]/)) if (word.length > 12) t.notOk(message.includes(word), `${name}: the value is not repeated`)
      t.notMatch(message, /hunter2/, 'nor a part of it')
    }
})

t.test('an address is a host and a port, or the path of a socket', async (t) => {
  const of = (AUTHZ_LISTEN: string) => loadConfig({ AUTHZ_LISTEN }).AUTHZ_LISTEN
  t.same(of('127.0.0.1:8081'), { host: '127.0.0.1', port: 8081 })
  t.same(of('[::1]:0'), { host: '::1', port: 0 })
  t.same(of('authz.internal:80'), { host: 'authz.internal', port: 80 })
  t.same(of('unix:/run/mecha-keys/authz.sock'), { path: '/run/mecha-keys/authz.sock' })
})

t.test('proxies are believed by address, by network, or by the name of one', async (t) => {
  const proxies = ['127.0.0.1', '::1', '10.0.0.0/8', 'fd00::/8', 'loopback', 'linklocal', 'uniquelocal']
  t.same(loadConfig({ TRUST_PROXY: proxies.join(', ') }).TRUST_PROXY, proxies)
  t.doesNotThrow(() => proxyAddr.compile(proxies), 'what is taken is what the server knows')
})

t.test('an empty value is refused and not taken for a default', async (t) => {
  for (const { name } of settingsTable())
    for (const value of ['', '  \n']) t.equal(refusal(t, () => loadConfig({ [name]: value })), `${name} must not be empty`)
})

t.test('a secret may stand in a file, which NAME_FILE names', async (t) => {
  const [first, second] = [secret(), secret()]
  t.same(loadConfig({ ROOT_SECRETS_FILE: file(t, 'roots', `${first}\n${second}\n`) }).ROOT_SECRETS, [first, second], 'one a line, the last line feed is not a part of it')
  t.equal(loadConfig({ OPERATOR_TOKEN_FILE: file(t, 'token', ' ey.J.x\r\n') }).OPERATOR_TOKEN, 'ey.J.x')
  const { value, from } = describeConfig({ ROOT_SECRETS_FILE: file(t, 'roots', first) })['ROOT_SECRETS']!
  t.same({ value, from }, { value: '********', from: 'ROOT_SECRETS_FILE' })
})

t.test('a file that cannot be used is refused by the name of its setting', async (t) => {
  const value = secret()
  const path = file(t, 'roots', value)
  t.equal(refusal(t, () => loadConfig({ ROOT_SECRETS: value, ROOT_SECRETS_FILE: path })), 'ROOT_SECRETS and ROOT_SECRETS_FILE are both set: keep one')
  t.equal(refusal(t, () => loadConfig({ ROOT_SECRETS_FILE: `${path}-elsewhere` })), 'ROOT_SECRETS_FILE names a file that cannot be read (ENOENT)')
  t.equal(refusal(t, () => loadConfig({ ROOT_SECRETS_FILE: t.testdirName })), 'ROOT_SECRETS_FILE names a file that cannot be read (EISDIR)')
  t.equal(refusal(t, () => loadConfig({ ROOT_SECRETS_FILE: '' })), 'ROOT_SECRETS_FILE names a file that cannot be read (ENOENT)')
  t.equal(refusal(t, () => loadConfig({ ROOT_SECRETS_FILE: file(t, 'empty', '\n') })), 'ROOT_SECRETS_FILE must not be empty')
  const message = refusal(t, () => loadConfig({ ROOT_SECRETS_FILE: file(t, 'short', value.slice(0, 20)) }))
  t.match(message, /^ROOT_SECRETS_FILE must hold secrets of 32 or more/)
  t.notOk(message.includes(value.slice(0, 20)))
})

t.test('only a secret may stand in a file', async (t) => {
  t.equal(loadConfig({ PORT_FILE: file(t, 'port', '1234') }).PORT, 8080)
})

t.test('settings that contradict each other are refused', async (t) => {
  const of = (environment: Environment) => refusal(t, () => loadConfig(environment))
  t.equal(of({ KEY_DEFAULT_TTL: '2d', KEY_MAX_TTL: '1d' }), 'KEY_DEFAULT_TTL must not be longer than KEY_MAX_TTL')
  t.equal(of({ KEY_PREFIX: 'mgw' }), 'KEY_PREFIX and GATEWAY_PREFIX must differ')
  t.equal(of({ ROTATE_DEFAULT_OVERLAP: '31d' }), 'ROTATE_DEFAULT_OVERLAP must not be longer than ROTATE_MAX_OVERLAP')
  t.equal(of({ TOKEN_TTL: '61m' }), 'TOKEN_TTL must not be longer than an hour')
  const endpoint = { OTEL_EXPORTER_OTLP_ENDPOINT: 'http://collector:4318', OTEL_EXPORTER_OTLP_PROTOCOL: 'grpc' }
  t.match(of(endpoint), /^OTEL_EXPORTER_OTLP_PROTOCOL must be http\/protobuf/)
  t.ok(loadConfig({ ...endpoint, OTEL_SDK_DISABLED: 'true' }), 'which does not matter where no traces are sent')
  t.match(of({ AUTHZ_ORG: 'acme' }), /^AUTHZ_ORG narrows AUTHZ_LISTEN, which is not set/)
  t.ok(loadConfig({ TOKEN_TTL: '1h', KEY_DEFAULT_TTL: '1d', KEY_MAX_TTL: '24h', ROTATE_DEFAULT_OVERLAP: '30d' }), 'and equal ones are not')
})

t.test('serving needs somebody who can vouch for operators, and a root secret', async (t) => {
  const serving = (environment: Environment) => () => requireServing(loadConfig(environment))
  t.match(refusal(t, serving({})), /^no operator could ever authenticate: set OIDC_ISSUER, or BUILTIN_ISSUER=on$/)
  t.equal(refusal(t, serving({ BUILTIN_ISSUER: 'on' })), 'BUILTIN_ISSUER=on needs BUILTIN_ISSUER_KEY or BUILTIN_ISSUER_KEY_FILE')
  t.doesNotThrow(serving({ BUILTIN_ISSUER: 'on', BUILTIN_ISSUER_KEY: privateKey() }))
  t.doesNotThrow(serving({ OIDC_ISSUER: 'https://login.example.com/' }))
  t.doesNotThrow(serving({ OIDC_ISSUER: 'http://127.0.0.1:9000' }))
  t.match(refusal(t, serving({ PLANES: 'control', OIDC_ISSUER: 'https://login.example.com/', AUTHZ_LISTEN: '127.0.0.1:8081' })), /^AUTHZ_LISTEN serves the runtime plane/)
  t.doesNotThrow(serving({ PLANES: 'runtime', AUTHZ_LISTEN: '127.0.0.1:8081' }))
  t.doesNotThrow(serving({ PLANES: 'runtime' }), 'the runtime plane knows no operators')
  t.equal(refusal(t, () => requireRoots(loadConfig({}))), 'ROOT_SECRETS or ROOT_SECRETS_FILE must be set')
  t.equal(requireRoots(loadConfig({ ROOT_SECRETS: `${secret()},${secret()}` })).length, 2)
})

t.test('a name that is nearly a setting is found, and an ordinary one is not', async (t) => {
  const suspects = (...names: string[]) => suspectNames(Object.fromEntries(names.map((name) => [name, 'x'])))
  t.same(suspects('KEY_DEFUALT_TTL'), [{ name: 'KEY_DEFUALT_TTL', meant: 'KEY_DEFAULT_TTL' }])
  t.same(suspects('ROOT_SECRET_FILE'), [{ name: 'ROOT_SECRET_FILE', meant: 'ROOT_SECRETS_FILE' }])
  t.same(suspects('DATABASE_URLS', 'OIDC_ISSUERS').map(({ meant }) => meant), ['DATABASE_URL', 'OIDC_ISSUER'])
  t.same(suspects('MECHA_KEYS_FOO'), [{ name: 'MECHA_KEYS_FOO', meant: undefined }])
  t.same(suspects('PATH', 'HOME', 'USER', 'SHELL', 'TERM', 'LANG', 'LC_ALL', 'PWD', 'OLDPWD', 'SHLVL', 'EDITOR', 'TZ', 'TMPDIR', 'HOSTNAME', 'LOGNAME', 'DISPLAY', 'NODE_ENV', 'NODE_OPTIONS', 'PGHOST', 'PGPASSWORD', 'HTTP_PROXY', 'npm_config_cache', 'npm_lifecycle_event', 'INIT_CWD', 'SSH_AUTH_SOCK', 'XDG_RUNTIME_DIR', 'KUBERNETES_PORT', 'KUBERNETES_SERVICE_HOST'), [])
  const ofKubernetes = {
    MECHA_KEYS_SERVICE_HOST: '10.96.0.12', MECHA_KEYS_SERVICE_PORT: '8080', MECHA_KEYS_SERVICE_PORT_HTTP: '8080', MECHA_KEYS_PORT: 'tcp://10.96.0.12:8080',
    MECHA_KEYS_PORT_8080_TCP: 'tcp://10.96.0.12:8080', MECHA_KEYS_PORT_8080_TCP_PROTO: 'tcp', MECHA_KEYS_PORT_8080_TCP_PORT: '8080', MECHA_KEYS_PORT_8080_TCP_ADDR: '10.96.0.12',
    DATABASE_SERVICE_HOST: '10.96.0.13', PUBLIC_SERVICE_PORT: '1', PORT_SERVICE_HOST: '10.96.0.14', PORT_PORT: 'tcp://10.96.0.14:80',
  }
  t.same(suspectNames(ofKubernetes), [], 'nor what Kubernetes says of the services around, of one of this name too')
  t.same(suspectNames({ MECHA_KEYS_PORT: '8080' }), [{ name: 'MECHA_KEYS_PORT', meant: undefined }], 'which a port is not')
  t.same(suspects('OTEL_EXPORTER_OTLP_ENDPOINTS', 'OTEL_TRACE_SAMPLER').map(({ meant }) => meant), ['OTEL_EXPORTER_OTLP_ENDPOINT', 'OTEL_TRACES_SAMPLER'])
  const ofOpenTelemetry = ['OTEL_TRACES_EXPORTER', 'OTEL_METRICS_EXPORTER', 'OTEL_LOGS_EXPORTER', 'OTEL_PROPAGATORS', 'OTEL_LOG_LEVEL', 'OTEL_EXPORTER_OTLP_TRACES_HEADERS', 'OTEL_EXPORTER_OTLP_METRICS_ENDPOINT', 'OTEL_EXPORTER_OTLP_LOGS_ENDPOINT', 'OTEL_EXPORTER_OTLP_TRACES_PROTOCOL', 'OTEL_EXPORTER_OTLP_CLIENT_KEY', 'OTEL_BSP_EXPORT_TIMEOUT', 'OTEL_BSP_MAX_EXPORT_BATCH_SIZE', 'OTEL_BLRP_SCHEDULE_DELAY', 'OTEL_BLRP_MAX_QUEUE_SIZE', 'OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT', 'OTEL_NODE_RESOURCE_DETECTORS', 'OTEL_SEMCONV_STABILITY_OPT_IN']
  t.same(suspects(...ofOpenTelemetry), [], 'nor what OpenTelemetry has beside ours')
  t.same(suspects(...settingsTable().flatMap(({ name, secret }) => (secret ? [name, `${name}_FILE`] : [name]))), [], 'nor a setting itself')
})

t.test('settings are shown with where they come from, and secrets masked', async (t) => {
  const password = secret()
  const shown = describeConfig({ PORT: '9090', DATABASE_URL: `postgres://app:${password}@db/keys`, ROOT_SECRETS: secret(), OPERATOR_TOKEN: password })
  t.same(shown['PORT'], { value: '9090', from: 'PORT' })
  t.same(shown['HOST'], { value: '127.0.0.1', from: 'default' })
  t.same(shown['OIDC_ISSUER'], { value: null, from: 'not set' })
  t.same(shown['DATABASE_URL'], { value: 'postgres://app:********@db/keys', from: 'DATABASE_URL' }, 'where a URL leads is no secret')
  const url = (value: string) => describeConfig({ DATABASE_URL: value, MECHA_KEYS_URL: value })
  const queried = url(`postgresql://app@db:5433/keys?sslmode=verify-full&password=${password}&options=-c%20${password}`)
  t.equal(queried['DATABASE_URL']!.value, 'postgresql://app@db:5433/keys?sslmode=verify-full&password=********&options=********')
  for (const unreadable of [`app:${password}`, `postgres://app:${password}@[::1/keys`, `postgres://app:${password}#@db/keys`, `postgres://app:${password}/@db`])
    t.notOk(String(url(unreadable)['DATABASE_URL']!.value).includes(password), 'nothing of a URL that is none')
  t.equal(url(`https://app:${password}@api.example.com`)['MECHA_KEYS_URL']!.value, 'https://app:********@api.example.com', 'nor a password where none belongs')
  t.same(shown['MECHA_KEY'], { value: null, from: 'not set' })
  t.notOk(JSON.stringify(shown).includes(password))
  t.same(Object.keys(shown), settingsTable().map(({ name }) => name))
})
