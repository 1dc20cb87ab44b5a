/** Hashing policy: argon2id (RFC 9106) with a pepper, over an input that binds the secret to what it is for. */

import { hash, verify } from '@node-rs/argon2'
import type { Root } from './roots.js'

/** `Algorithm.Argon2id`; the package's const enum cannot be imported under `verbatimModuleSyntax`. */
const ARGON2ID = 2

/**
 * Memory in KiB and passes. A key's secret has 256 random bits, so a slow hash adds nothing against guessing
 * (NIST SP 800-63B-4, section 3.1.2: 112 bits are enough) and is itself a lever for denial of service;
 * `owasp` is the OWASP Password Storage Cheat Sheet's minimum, for those whose auditors want it.
 */
export const HASH_PROFILES = {
  'high-entropy': { memoryCost: 1024, timeCost: 1, parallelism: 1 },
  owasp: { memoryCost: 19456, timeCost: 2, parallelism: 1 },
} as const

export type HashProfile = keyof typeof HASH_PROFILES

/** What a hash is bound to. Whoever rewrites a row's id or subject makes its key fail. */
export interface HashInput {
  /** The key's id, as a UUID. */
  readonly id: string
  /** `name^crew` for a Mecha key; what {@link gatewaySubject} gives for a gateway. */
  readonly subject: string
  /** The 43 secret characters. */
  readonly secret: string
}

/** A gateway's hash is bound to the organization whose keys it may verify. For all of them it is a text that no id gives. */
export function gatewaySubject(orgId: string | null): string {
  return orgId === null ? 'gateway' : `gateway ${orgId}`
}

/** An argon2id PHC string for storage. */
export function hashSecret(input: HashInput, root: Root, profile: HashProfile): Promise<string> {
  return hash(bind(input), { ...HASH_PROFILES[profile], algorithm: ARGON2ID, secret: root.pepper })
}

/** Whether the secret belongs to the stored hash. The comparison inside is constant-time. */
export function verifySecret(phc: string, input: HashInput, root: Root): Promise<boolean> {
  return verify(phc, bind(input), { secret: root.pepper })
}

/** Whether a stored hash was made with other parameters than today's. */
export function isOutdated(phc: string, profile: HashProfile): boolean {
  const { memoryCost, timeCost, parallelism } = HASH_PROFILES[profile]
  return !phc.startsWith(`$argon2id$v=19$m=${memoryCost},t=${timeCost},p=${parallelism}$`)
}

/** No part can hold a line feed, so no two inputs share an encoding. */
function bind({ id, subject, secret }: HashInput): string {
  return `${id}\n${subject}\n${secret}`
}
