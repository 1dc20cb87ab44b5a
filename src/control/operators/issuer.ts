/** An issuer of operator tokens, as far as checking them goes. */

import type { importPKCS8, JWTVerifyGetKey } from 'jose'

export interface Issuer {
  readonly issuer: string
  readonly algorithms: readonly string[]
  /** Media types of the tokens that are accepted, where `undefined` stands for a token that names no type. Without this list every type is. */
  readonly types?: readonly (string | undefined)[]
  readonly key: JWTVerifyGetKey | CryptoKeyLike
}
export type CryptoKeyLike = Awaited<ReturnType<typeof importPKCS8>>
