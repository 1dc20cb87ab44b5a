/** Bearer tokens in HTTP headers, and the challenges that ask for them (RFC 6750). */

/** The token of an `Authorization` header, or `undefined` where it holds none. The scheme's case does not matter (RFC 9110, section 11.1). */
export function bearerToken(authorization: string): string | undefined {
  // The way that nearly every client writes it, without a regular expression: this is on the hot path.
  if (authorization.startsWith('Bearer ') && !authorization.includes(' ', 7)) return authorization.slice(7) || undefined
  return /^Bearer +(\S+)$/i.exec(authorization)?.[1]
}

/**
 * A value of `WWW-Authenticate`, with its parameters in the order given. Values are not escaped: they must hold neither `"` nor `\`,
 * which no error code, scope or description of this project does.
 */
export function bearerChallenge(realm: string, parameters: Readonly<Record<string, string>> = {}): string {
  return `Bearer ${Object.entries({ realm, ...parameters }).map(([name, value]) => `${name}="${value}"`).join(', ')}`
}
