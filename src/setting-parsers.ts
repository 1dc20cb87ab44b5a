/**
 * The rules of settings: each takes a text apart, or throws an Error whose message completes "NAME …" and never repeats the value. The file
 * is long because it is a list: one function a rule, and none knows another setting.
 */

import { accessSync, constants } from 'node:fs'
import { isIP } from 'node:net'
import { PREFIX } from './credentials/token.js'

/** Where a listener is. */
export type Address = { readonly host: string; readonly port: number } | { readonly path: string }
export const ORGANIZATION = /^[\x21-\x7e]{1,128}$/
export const ORGANIZATION_RULE = "must be an organization's id: 1 to 128 printable ASCII characters without spaces"

export const text = (value: string) => value

export function integer(least: number, most: number) {
  return (value: string): number => {
    const number = Number(value)
    if (!/^\d+$/.test(value) || number < least || number > most)
      throw new Error(`must be a whole number from ${least} to ${most}`)
    return number
  }
}

/** Seconds, from `90`, `90s`, `15m`, `12h` or `30d`. */
export function duration(value: string): number {
  const match = /^(\d{1,9})([smhd]?)$/.exec(value)
  const seconds = match && Number(match[1]) * { '': 1, s: 1, m: 60, h: 3600, d: 86_400 }[match[2] as '' | 's']
  if (!seconds || seconds > 100 * 366 * 86_400)
    throw new Error('must be a time of at least one second and at most a hundred years, as in 90s, 15m, 12h or 30d')
  return seconds
}

/** A duration that ends in a timer. One past 2^31 milliseconds would fire at once, and for ever. */
export function upTo(most: string) {
  const longest = duration(most)
  return {
    most,
    parse(value: string): number {
      const seconds = duration(value)
      if (seconds > longest) throw new Error(`must be a time of ${most} at most`)
      return seconds
    },
  }
}

/** A duration of days or years, where a number without a unit would be a mistake: seconds. */
export function atLeast(least: string) {
  const shortest = duration(least)
  return (value: string): number => {
    const seconds = duration(value)
    if (seconds < shortest) throw new Error(`must be a time of ${least} at least`)
    return seconds
  }
}

export function oneOf<const T extends string>(...choices: T[]) {
  return (value: string): T => {
    const choice = choices.find((one) => one === value)
    if (!choice) throw new Error(`must be one of ${choices.join(', ')}`)
    return choice
  }
}

export function ratio(value: string): number {
  const number = Number(value)
  if (!/^\d*\.?\d+$/.test(value) || number > 1) throw new Error('must be a number from 0 to 1')
  return number
}

/** `name=value,name=value`, percent-encoded as OpenTelemetry has it. */
export function pairs(value: string): Record<string, string> {
  const rule = 'must be pairs like name=value, separated by commas, what is special in them percent-encoded'
  return Object.fromEntries(
    list((pair) => {
      const [, name, said] = /^([!#$%&'*+.^_`|~0-9A-Za-z-]+)=([\x21-\x7e ]*)$/.exec(pair) ?? []
      if (name === undefined || said === undefined || !isPercentEncoded(said)) throw new Error(rule)
      return [name, decodeURIComponent(said)] as const
    })(value),
  )
}

function isPercentEncoded(value: string): boolean {
  try {
    // A line feed in a header would be another header.
    return !/\p{Cc}/u.test(decodeURIComponent(value))
  } catch {
    return false
  }
}

export function readableFile(value: string): string {
  try {
    accessSync(value, constants.R_OK)
  } catch (error) {
    throw new Error(`names a file that cannot be read (${(error as NodeJS.ErrnoException).code})`, { cause: error })
  }
  return value
}

export function list<T>(parse: (item: string) => T) {
  return (value: string): T[] =>
    value.split(',').map((item) => {
      if (item.trim() === '') throw new Error('must not have an empty item')
      return parse(item.trim())
    })
}

function url(value: string, protocols: string[], rule: string): URL {
  const parsed = URL.canParse(value) ? new URL(value) : undefined
  if (!parsed || !protocols.includes(parsed.protocol)) throw new Error(rule)
  return parsed
}

export function postgresUrl(value: string): string {
  const rule = 'must be a URL like postgres://user:password@host:5432/database'
  if (!url(value, ['postgres:', 'postgresql:'], rule).username) throw new Error(rule)
  return value
}

export function httpUrl(value: string): string {
  return url(value, ['http:', 'https:'], 'must be an http or https URL').href.replace(/\/$/, '')
}

/** An issuer identifier as RFC 8414, section 2, has it. */
export function publicUrl(value: string): string {
  const rule = 'must be an http or https URL without query, fragment and password'
  const { search, hash, username } = url(value, ['http:', 'https:'], rule)
  if (search || hash || username || /[?#]/.test(value)) throw new Error(rule)
  return httpUrl(value)
}

export function issuerUrl(value: string): string {
  if (!isFetchable(value)) throw new Error('must be an https URL (http only on the loopback)')
  return value
}

export function origin(value: string): string {
  const rule = 'must hold origins like https://console.example.com, with no path and no wildcard'
  if (url(value, ['http:', 'https:'], rule).origin !== value) throw new Error(rule)
  return value
}

export function address(value: string): Address {
  const [, path] = /^unix:(\/.+)$/.exec(value) ?? []
  if (path) return { path }
  const [, host, port] = /^(\[[0-9a-fA-F:.]+\]|[^\s:/[\]]+):(\d{1,5})$/.exec(value) ?? []
  if (!host || Number(port) > 65535) throw new Error('must be an address like 127.0.0.1:8081, [::1]:8081 or unix:/run/mecha-keys/authz.sock')
  return { host: host.replace(/[[\]]/g, ''), port: Number(port) }
}

/** As it is compared: `undefined` for a token that names none. */
export function tokenType(value: string): string | undefined {
  if (value === 'none') return undefined
  if (!/^[\w.+-]+(\/[\w.+-]+)?$/.test(value)) throw new Error('must hold types of tokens like at+jwt or JWT, or none')
  return mediaTypeOf(value)
}

/** The media type that a token's `typ` stands for (RFC 7515, section 4.1.9). */
export function mediaTypeOf(typ: string): string {
  return (typ.includes('/') ? typ : `application/${typ}`).toLowerCase()
}

export function network(value: string): string {
  const [, ip = '', , bits] = /^([^/]*)(\/(\d{1,3}))?$/.exec(value) ?? []
  const most = { 0: 0, 4: 32, 6: 128 }[isIP(ip)]!
  if (!['loopback', 'linklocal', 'uniquelocal'].includes(value) && (most === 0 || (bits !== undefined && (Number(bits) < 1 || Number(bits) > most))))
    throw new Error('must hold addresses of proxies like 10.1.2.3, networks like 10.0.0.0/8, or loopback, linklocal or uniquelocal; whom to believe cannot be everybody')
  return value
}

export function organization(value: string): string {
  if (!ORGANIZATION.test(value)) throw new Error(ORGANIZATION_RULE)
  return value
}

export function prefix(value: string): string {
  if (!PREFIX.test(value))
    throw new Error('must be one to three words of lower case letters and digits joined by "_", starting with a letter')
  return value
}

export function rootSecrets(value: string): string[] {
  const secrets = value.split(/[,\n]/).map((secret) => secret.trim())
  if (secrets.some((secret) => secret.length < 32 || /\s/.test(secret)))
    throw new Error('must hold secrets of 32 or more characters without spaces, separated by commas or line feeds')
  if (new Set(secrets).size !== secrets.length) throw new Error('must not hold the same secret twice')
  return secrets
}

export function privateKey(value: string): string {
  if (!value.startsWith('-----BEGIN PRIVATE KEY-----')) throw new Error('must be a PKCS #8 private key in PEM')
  return value
}

/** Whether an issuer's documents may be fetched from here: keys fetched in the clear could be anybody's. */
export function isFetchable(address: string): boolean {
  if (!URL.canParse(address)) return false
  const { protocol, hostname } = new URL(address)
  return protocol === 'https:' || (protocol === 'http:' && ['localhost', '127.0.0.1', '[::1]'].includes(hostname))
}
