/**
 * Every setting: its name, its default, its rule. Nothing else reads the environment. The file is long because the table of settings is in
 * one place; the rules themselves stand in `setting-parsers.ts`.
 */

import { readFileSync } from 'node:fs'
import { closest, distance } from 'fastest-levenshtein'
import { ConfigError } from './errors.js'
import { HASH_PROFILES, type HashProfile } from './credentials/hash.js'
import { rootsOf, type Roots } from './credentials/roots.js'
import { MAX_TOKEN_TTL } from './credentials/signing-key.js'
import {
  address, atLeast, duration, httpUrl, integer, issuerUrl, list, network, oneOf, organization, origin,
  pairs, postgresUrl, prefix, privateKey, publicUrl, ratio, readableFile, rootSecrets, text, tokenType, upTo,
} from './setting-parsers.js'
import { SAMPLERS } from './tracing/tracing.js'

export { isFetchable, mediaTypeOf, ORGANIZATION, ORGANIZATION_RULE, type Address } from './setting-parsers.js'

export type Environment = Readonly<Record<string, string | undefined>>

interface Setting<T> {
  /** For the table in the README, and for whoever reads `mecha-keys config`. */
  readonly about: string
  /** As it would be written in the environment. */
  readonly default?: string
  /** Masked wherever settings are shown, and readable from the file that `NAME_FILE` names. */
  readonly secret?: true
  /** The longest time that it may be set to, where it ends in a timer: as it would be written. */
  readonly most?: string
  /** Takes the text apart, or throws an Error that says the rule and not the value. */
  readonly parse: (text: string) => T
}

/** What was written, or `undefined` where the setting has no default. */
type Value<S> = S extends { default: string; parse: (text: string) => infer T }
  ? T
  : S extends { parse: (text: string) => infer T }
    ? T | undefined
    : never

const SETTINGS = {
  HOST: { about: 'Address to listen on', default: '127.0.0.1', parse: text },
  PORT: { about: 'Port to listen on; 0 takes a free one', default: '8080', parse: integer(0, 65535) },
  PLANES: { about: 'What this process serves: `control`, `runtime` or `both`', default: 'both', parse: oneOf('control', 'runtime', 'both') },
  PUBLIC_URL: { about: 'Base URL under which gateways and runtimes reach the runtime plane, and `iss` of what it signs; `http://HOST:PORT` without it', parse: publicUrl },
  AUTHZ_LISTEN: { about: 'Address of a second listener for proxies that cannot add a header: `host:port` or `unix:/path`. It serves `/v1/authz` alone, to **everybody who can reach it**, without a gateway credential', parse: address },
  AUTHZ_ORG: { about: 'The one organization whose keys pass on `AUTHZ_LISTEN`; without it, those of every organization do', parse: organization },
  AUTHZ_UNAVAILABLE: { about: 'What `/v1/authz` answers while nobody can say whether a key is good: `403`, or `503` for proxies that pass it on', default: '403', parse: (value): 403 | 503 => (oneOf('403', '503')(value) === '403' ? 403 : 503) },
  TRUST_PROXY: { about: 'Addresses or networks of proxies whose `X-Forwarded-For` is believed, separated by commas', parse: list(network) },
  CORS_ORIGINS: { about: 'Origins of browser frontends that may call the control plane, separated by commas', parse: list(origin) },
  LOG_LEVEL: { about: 'Least severity logged', default: 'info', parse: oneOf('fatal', 'error', 'warn', 'info', 'debug', 'trace', 'silent') },
  REQUEST_TIMEOUT: { about: 'Longest that a request may take to arrive', default: '10s', ...upTo('1h') },
  DRAIN_DELAY: { about: 'Seconds that `/readyz` says no before a stopping process ends its listener, for balancers that poll it', default: '0', parse: integer(0, 300) },
  SHUTDOWN_TIMEOUT: { about: 'Longest that requests in flight may take after SIGTERM or SIGINT', default: '8s', ...upTo('1h') },

  DATABASE_URL: { about: "The control plane's database login, and the runtime's where it has none of its own; with none of the three, an embedded PostgreSQL is started", secret: true, parse: postgresUrl },
  RUNTIME_DATABASE_URL: { about: "The runtime plane's database login", secret: true, parse: postgresUrl },
  MIGRATE_DATABASE_URL: { about: "The owner's database login, for `mecha-keys migrate`, `crew`, `events expire`, `organization` and `restore`; `DATABASE_URL` where it is not set", secret: true, parse: postgresUrl },
  DATABASE_POOL_SIZE: { about: 'Most connections open at once, for each plane', default: '10', parse: integer(1, 1000) },
  DATABASE_TIMEOUT: { about: 'Longest wait for a connection, a statement or a lock', default: '5s', ...upTo('1h') },
  DATABASE_DIRECT_URL: { about: 'The runtime login on a connection straight to PostgreSQL, for the change feed; needed where the other URLs lead to a pooler', secret: true, parse: postgresUrl },
  PREPARED_STATEMENTS: { about: 'Whether the statements that verify, issue and rotate a key are planned once for each connection: `on`, `off`, or `auto`, which is on unless `DATABASE_DIRECT_URL` is set. A pooler in transaction mode has to know of them: PgBouncer does from 1.21 on, with `max_prepared_statements`', default: 'auto', parse: oneOf('auto', 'on', 'off') },
  DATA_DIR: { about: 'Folder of the embedded PostgreSQL and of what it generates', default: '.data', parse: text },

  ROOT_SECRETS: { about: 'Root secrets, newest first, separated by commas or line feeds, each of 32 or more characters; the embedded default generates one', secret: true, parse: rootSecrets },
  KEY_PREFIX: { about: 'First word of Mecha keys; `mecha_stg` for a staging deployment', default: 'mecha', parse: prefix },
  GATEWAY_PREFIX: { about: 'First word of gateway credentials', default: 'mgw', parse: prefix },
  HASH_PROFILE: { about: "argon2id's cost: `high-entropy` (64 KiB, 1 pass) or `owasp` (19 MiB, 2 passes)", default: 'high-entropy', parse: oneOf(...(Object.keys(HASH_PROFILES) as HashProfile[])) },
  KEY_DEFAULT_TTL: { about: 'Life of a key whose issuer names none; without it, such a key does not expire', parse: duration },
  KEY_MAX_TTL: { about: 'Longest life of a key; without it, a key may live for ever', parse: duration },
  CREWS: { about: 'Who may take a handle that nobody has: whoever comes first, unless its crew is reserved for another organization (`open`), or only who has a claim to the crew, by a reservation or by the token (`OIDC_CREWS_CLAIM`) (`claim`)', default: 'open', parse: oneOf('open', 'claim') },
  MAX_ACTIVE_KEYS_PER_MECHA: { about: 'Most keys of one Mecha that are neither revoked nor expired', default: '20', parse: integer(1, 10_000) },
  ROTATE_DEFAULT_OVERLAP: { about: 'How long the old key of a rotation stays valid when the operator names no time', default: '1h', parse: duration },
  ROTATE_MAX_OVERLAP: { about: 'Longest overlap that an operator may ask for', default: '30d', parse: duration },
  IDEMPOTENCY_TTL: { about: 'How long an `Idempotency-Key` is remembered', default: '24h', parse: duration },
  TOKEN_TTL: { about: 'Life of a JWT that a key is exchanged for, one hour at most; the key\'s own end comes first', default: '5m', parse: duration },
  TOKEN_RATE: { about: 'Most calls of `/v1/token` from one address in a minute, for each process', default: '6000', parse: integer(1, 1_000_000) },
  TOKEN_RATE_PER_KEY: { about: 'Most JWTs that one key is exchanged for in a minute, for each process', default: '300', parse: integer(1, 1_000_000) },
  REVOKE_TOKEN_RATE: { about: 'Most calls of `/v1/revoke-token` from one address in a minute, for each process', default: '60', parse: integer(1, 1_000_000) },
  REVOCATION_MAX_STALENESS: { about: 'Longest that a key is answered from memory without word from the change feed: the bound within which a revocation counts everywhere', default: '10s', ...upTo('1h') },
  REVALIDATE_AFTER: { about: 'How soon what is held in memory is compared with the database, whatever the change feed told: the bound within which even a change that no feed told of counts', default: '10m', ...upTo('1d') },
  CACHE_MAX_KEYS: { about: 'Most keys held in memory, for each process', default: '100000', parse: integer(1, 10_000_000) },
  CHANGE_STREAMS_MAX: { about: 'Most streams of changes to gateways at once, for each process; one gateway may have half of them', default: '1000', parse: integer(1, 100_000) },
  QUEUE_SIZE: { about: 'Most keys that wait for argon2, most that wait for the database, and most requests of operators at once; whatever comes then is answered with 503', default: '1000', parse: integer(1, 100_000) },
  USAGE_FLUSH_INTERVAL: { about: 'How often `last_used_at` and `last_refused_at` are written; a crash loses at most this much of them', default: '10s', ...upTo('1d') },
  EVENTS_RETENTION: { about: 'How long events are kept at least, a day or more: `mecha-keys events expire` drops months that are wholly older. Without it, events are kept for ever', parse: atLeast('1d') },

  OIDC_ISSUER: { about: "Issuer of operators' tokens, exactly as in their `iss`; https, or http on the loopback", parse: issuerUrl },
  OIDC_AUDIENCE: { about: "What must be in an operator token's `aud`", default: 'mecha-keys', parse: text },
  OIDC_JWKS_URL: { about: "Where the issuer's keys are; found through its discovery document where it is not set", parse: issuerUrl },
  OIDC_ALGORITHMS: { about: 'Signature algorithms accepted, asymmetric ones only', default: 'RS256,PS256,ES256,EdDSA', parse: list(oneOf('RS256', 'RS384', 'RS512', 'PS256', 'PS384', 'PS512', 'ES256', 'ES384', 'ES512', 'EdDSA', 'Ed25519')) },
  OIDC_TOKEN_TYPES: { about: "Types (`typ`) of operators' tokens accepted, `none` being one without: an ID token is refused where its issuer tells it apart by its type", default: 'at+jwt,none', parse: list(tokenType) },
  OIDC_ORG_CLAIM: { about: 'Claim that holds the organization', default: 'org_id', parse: text },
  OIDC_SCOPE_CLAIM: { about: 'Claim that holds the scopes, as text with spaces or as a list', default: 'scope', parse: text },
  OIDC_CREWS_CLAIM: { about: 'Claim that narrows an operator to some crews', default: 'crews', parse: text },
  OIDC_CLOCK_TOLERANCE: { about: "How far the issuer's clock may be off", default: '5s', parse: duration },
  OIDC_JWKS_MAX_AGE: { about: "How long the issuer's keys are used before they are fetched again", default: '10m', parse: duration },
  OIDC_JWKS_COOLDOWN: { about: 'Shortest time between two fetches for a key that is not known', default: '30s', parse: duration },
  BUILTIN_ISSUER: { about: 'Whether the built-in issuer of operator tokens is trusted; the embedded default turns it on', default: 'off', parse: oneOf('on', 'off') },
  BUILTIN_ISSUER_KEY: { about: "The built-in issuer's Ed25519 private key, PKCS #8 in PEM; the embedded default generates one", secret: true, parse: privateKey },

  OTEL_EXPORTER_OTLP_ENDPOINT: { about: 'Where traces are sent by OTLP over HTTP, as in `http://collector:4318`, to its `/v1/traces`; without it there are none, and nothing of OpenTelemetry is loaded', parse: httpUrl },
  OTEL_EXPORTER_OTLP_TRACES_ENDPOINT: { about: 'The whole URL that traces are sent to, where it is another one. It alone turns nothing on', parse: httpUrl },
  OTEL_EXPORTER_OTLP_HEADERS: { about: 'Headers that are sent along, as in `authorization=Bearer%20…,x-team=keys`', secret: true, parse: pairs },
  OTEL_EXPORTER_OTLP_PROTOCOL: { about: '`http/protobuf` is the one that there is', default: 'http/protobuf', parse: oneOf('http/protobuf', 'http/json', 'grpc') },
  OTEL_EXPORTER_OTLP_COMPRESSION: { about: '`gzip` or `none`', default: 'none', parse: oneOf('gzip', 'none') },
  OTEL_EXPORTER_OTLP_TIMEOUT: { about: 'Longest that an export may take, in milliseconds', default: '10000', parse: integer(1, 60_000) },
  OTEL_EXPORTER_OTLP_CERTIFICATE: { about: 'File of the authority that the collector\'s certificate is of, in PEM', parse: readableFile },
  OTEL_SERVICE_NAME: { about: '`service.name` of what is sent; `mecha-keys` without it', parse: text },
  OTEL_RESOURCE_ATTRIBUTES: { about: 'More that is said of this process, as in `deployment.environment.name=staging,host.name=a`', parse: pairs },
  OTEL_TRACES_SAMPLER: { about: `Which requests are traced: ${SAMPLERS.map((name) => `\`${name}\``).join(', ')}`, default: 'parentbased_always_on', parse: oneOf(...SAMPLERS) },
  OTEL_TRACES_SAMPLER_ARG: { about: 'Which part of them, where the sampler is one of a ratio: from 0 to 1', default: '1', parse: ratio },
  OTEL_BSP_MAX_QUEUE_SIZE: { about: 'Most spans that wait to be sent; what comes then is dropped', default: '2048', parse: integer(1, 1_000_000) },
  OTEL_BSP_SCHEDULE_DELAY: { about: 'How often spans are sent, in milliseconds', default: '5000', parse: integer(1, 600_000) },
  OTEL_SDK_DISABLED: { about: '`true` turns traces off, whatever else is set', default: 'false', parse: oneOf('true', 'false') },

  MECHA_KEYS_URL: { about: 'Where the service is, for `issue`, `list`, `revoke` and `verify`', default: 'http://127.0.0.1:8080', parse: httpUrl },
  OPERATOR_TOKEN: { about: 'Operator token, for `issue`, `list` and `revoke`', secret: true, parse: text },
  GATEWAY_CREDENTIAL: { about: 'Gateway credential, for `verify`', secret: true, parse: text },
  MECHA_KEY: { about: 'The key to verify, for `verify`, where standard input is a terminal', secret: true, parse: text },
} satisfies Record<string, Setting<unknown>>

export type SettingName = keyof typeof SETTINGS
export type DatabaseUrl = 'DATABASE_URL' | 'DATABASE_DIRECT_URL' | 'RUNTIME_DATABASE_URL' | 'MIGRATE_DATABASE_URL'
export type Settings = { readonly [Name in SettingName]: Value<(typeof SETTINGS)[Name]> }

const NAMES = Object.keys(SETTINGS) as SettingName[]
const settingOf = (name: SettingName): Setting<unknown> => SETTINGS[name]

/** The environment of this process. Nothing else reads it. */
export function processEnvironment(): Environment {
  return process.env
}

/**
 * Reads, validates and freezes the settings.
 *
 * @throws ConfigError naming the first setting that is wrong, and the rule it breaks
 */
export function loadConfig(environment: Environment): Settings {
  const config = Object.freeze(
    Object.fromEntries(NAMES.map((name) => [name, readSetting(name, environment)])) as Settings,
  )
  if (config.KEY_PREFIX === config.GATEWAY_PREFIX)
    throw new ConfigError('KEY_PREFIX and GATEWAY_PREFIX must differ')
  if (config.KEY_MAX_TTL && (config.KEY_DEFAULT_TTL ?? 0) > config.KEY_MAX_TTL)
    throw new ConfigError('KEY_DEFAULT_TTL must not be longer than KEY_MAX_TTL')
  if (config.ROTATE_DEFAULT_OVERLAP > config.ROTATE_MAX_OVERLAP)
    throw new ConfigError('ROTATE_DEFAULT_OVERLAP must not be longer than ROTATE_MAX_OVERLAP')
  if (config.TOKEN_TTL > MAX_TOKEN_TTL) throw new ConfigError('TOKEN_TTL must not be longer than an hour')
  if (config.AUTHZ_ORG && !config.AUTHZ_LISTEN)
    throw new ConfigError('AUTHZ_ORG narrows AUTHZ_LISTEN, which is not set: a gateway credential has its own organization')
  if (sendsTraces(config) && config.OTEL_EXPORTER_OTLP_PROTOCOL !== 'http/protobuf')
    throw new ConfigError('OTEL_EXPORTER_OTLP_PROTOCOL must be http/protobuf: traces are sent in no other way')
  return config
}

/** Whether statements may be prepared: where there is a pooler, the feed needs another URL. */
export function preparesStatements({ PREPARED_STATEMENTS: setting, DATABASE_DIRECT_URL }: Settings): boolean {
  return setting === 'auto' ? DATABASE_DIRECT_URL === undefined : setting === 'on'
}

export function sendsTraces(config: Settings): boolean {
  return config.OTEL_EXPORTER_OTLP_ENDPOINT !== undefined && config.OTEL_SDK_DISABLED === 'false'
}

/** The roots of the configured root secrets, which whatever makes or checks a key needs. */
export function requireRoots(config: Settings): Roots {
  if (!config.ROOT_SECRETS) throw new ConfigError('ROOT_SECRETS or ROOT_SECRETS_FILE must be set')
  return rootsOf(config.ROOT_SECRETS)
}

/** The first of these database logins that is set. */
export function requireDatabase(config: Settings, ...names: [DatabaseUrl, ...DatabaseUrl[]]): string {
  return config[databaseSetting(config, ...names)]!
}

/** The name of the first of these database logins that is set. */
export function databaseSetting(config: Settings, ...names: [DatabaseUrl, ...DatabaseUrl[]]): DatabaseUrl {
  const name = names.find((one) => config[one] !== undefined)
  if (!name) throw new ConfigError(`${names[0]} or ${names[0]}_FILE must be set`)
  return name
}

/** What serving needs beyond what every command needs. */
export function requireServing(config: Settings): void {
  if (config.PLANES !== 'runtime' && !config.OIDC_ISSUER && config.BUILTIN_ISSUER === 'off')
    throw new ConfigError('no operator could ever authenticate: set OIDC_ISSUER, or BUILTIN_ISSUER=on')
  if (config.BUILTIN_ISSUER === 'on' && config.PLANES !== 'runtime' && !config.BUILTIN_ISSUER_KEY)
    throw new ConfigError('BUILTIN_ISSUER=on needs BUILTIN_ISSUER_KEY or BUILTIN_ISSUER_KEY_FILE')
  if (config.PLANES === 'control' && config.AUTHZ_LISTEN)
    throw new ConfigError('AUTHZ_LISTEN serves the runtime plane, which PLANES=control leaves out')
}

/** Names in the environment that look like a setting and are none. Two letters off a short one is another word: PGHOST. So it is of OpenTelemetry's, which has many. */
export function suspectNames(environment: Environment): { name: string; meant: string | undefined }[] {
  const known = new Set<string>(NAMES.flatMap((name) => (settingOf(name).secret ? [name, `${name}_FILE`] : [name])))
  return Object.keys(environment)
    .filter((name) => /^[A-Z][A-Z0-9_]{4,}$/.test(name) && !known.has(name) && !isServiceLink(name, environment[name]!))
    .map((name) => ({ name, near: closest(name, [...known]) }))
    .map(({ name, near }) => ({ name, meant: distance(name, near) <= (near.length > 6 && !name.startsWith('OTEL_') ? 2 : 1) ? near : undefined }))
    .filter(({ name, meant }) => meant !== undefined || name.startsWith('MECHA_'))
}

/** Kubernetes tells each container the addresses of the services around it, of one named mecha-keys too. A number in `…_PORT` is somebody's setting. */
function isServiceLink(name: string, value: string): boolean {
  return /_SERVICE_(HOST|PORT(_[A-Z0-9_]+)?)$/.test(name) || (/_PORT(_\d+_(TCP|UDP|SCTP))?$/.test(name) && /^(tcp|udp|sctp):\/\//.test(value)) || /_PORT_\d+_(TCP|UDP|SCTP)_(PROTO|PORT|ADDR)$/.test(name)
}

/** The settings as they are in effect, secrets masked: what `mecha-keys config` prints. */
export function describeConfig(environment: Environment): Record<string, { value: string | null; from: string }> {
  return Object.fromEntries(
    NAMES.map((name) => {
      const { value, from } = rawSetting(name, environment)
      return [name, { value: value === undefined ? null : masked(settingOf(name), value.trim()), from }]
    }),
  )
}

const MASK = '********'
/** Parameters of a database URL that hold no secret. */
const SHOWN_PARAMETERS = ['host', 'port', 'sslmode', 'sslrootcert', 'application_name', 'target_session_attrs']

/** A setting as it may be shown. Of a URL only the password is masked, and parameters that could hold one: where it leads is no secret. */
function masked({ secret, parse }: Setting<unknown>, value: string): string {
  const url = URL.canParse(value) ? new URL(value) : undefined
  if (secret ? parse !== postgresUrl || !url?.username : !url?.password) return secret ? MASK : value
  if (url!.password) url!.password = MASK
  for (const name of url!.searchParams.keys()) if (!SHOWN_PARAMETERS.includes(name)) url!.searchParams.set(name, MASK)
  url!.hash = ''
  return url!.href.replace(/\/$/, '')
}

/** For the README's table. */
export function settingsTable(): { name: string; default: string | undefined; secret: boolean; most: string | undefined; about: string }[] {
  return NAMES.map((name) => {
    const setting = settingOf(name)
    return { name, default: setting.default, secret: setting.secret ?? false, most: setting.most, about: setting.about }
  })
}

function readSetting(name: SettingName, environment: Environment): unknown {
  const { value, from } = rawSetting(name, environment)
  if (value === undefined) return undefined
  try {
    if (value.trim() === '') throw new Error('must not be empty')
    return settingOf(name).parse(value.trim())
  } catch (error) {
    throw new ConfigError(`${from === 'default' ? name : from} ${(error as Error).message}`)
  }
}

/** Where a setting's text comes from: the environment, the file that `NAME_FILE` names, or the default. */
function rawSetting(name: SettingName, environment: Environment): { value: string | undefined; from: string } {
  const setting = settingOf(name)
  const file = setting.secret ? environment[`${name}_FILE`] : undefined
  const value = environment[name]
  if (file !== undefined && value !== undefined) throw new ConfigError(`${name} and ${name}_FILE are both set: keep one`)
  if (file !== undefined) return { value: readSecretFile(name, file), from: `${name}_FILE` }
  if (value !== undefined) return { value, from: name }
  return { value: setting.default, from: setting.default === undefined ? 'not set' : 'default' }
}

function readSecretFile(name: string, file: string): string {
  try {
    return readFileSync(file, 'utf8')
  } catch (error) {
    throw new ConfigError(`${name}_FILE names a file that cannot be read (${(error as NodeJS.ErrnoException).code})`)
  }
}
