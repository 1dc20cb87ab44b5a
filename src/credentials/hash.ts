/**
 * Hashing policy: argon2id (RFC 9106) with a pepper, over an input that binds the secret to what it is for.
 *
 * The input has two versions. In the first it holds the secret itself. argon2's binding copies its input into memory that
 * it frees without wiping, so in the second, which every new hash has, it holds a keyed digest of the secret
 * (`docs/decisions/0028-hash-input.md`). A row says in `pepper_root` which of them its hash was made with.
 */

import { hash, verify } from '@node-rs/argon2'
import type { Root, Roots } from './roots.js'

/** `Algorithm.Argon2id`; the package's const enum cannot be imported under `verbatimModuleSyntax`. */
const ARGON2ID = 2

/**
 * Memory in KiB and passes. A key's secret has 256 random bits, so a slow hash adds nothing against guessing
 * (NIST SP 800-63B-4, section 3.1.2: 112 bits are enough) and is itself a lever for denial of service;
 * `owasp` is the OWASP Password Storage Cheat Sheet's minimum, for those whose auditors want it. What was measured is in
 * `docs/decisions/0001-hash-cost.md`.
 */
export const HASH_PROFILES = {
  'high-entropy': { memoryCost: 64, timeCost: 1, parallelism: 1 },
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

const VERSIONS = [1, 2] as const

/** How a hash was made: under which root, and with which version of the input. */
export interface Pepper {
  readonly root: Root
  readonly version: (typeof VERSIONS)[number]
}

/** What `pepper_root` says of a hash: `<root id>`, or `<root id>/2`. */
export function nameOfPepper({ root, version }: Pepper): string {
  return version === 1 ? root.id : `${root.id}/${version}`
}

/** The pepper that `pepper_root` names; `undefined` where its root is not configured, or its version is of a later release. */
export function findPepper(name: string, roots: Roots): Pepper | undefined {
  for (const root of roots)
    for (const version of VERSIONS) if (nameOfPepper({ root, version }) === name) return { root, version }
  return undefined
}

/** An argon2id PHC string for storage. */
export function hashSecret(input: HashInput, pepper: Pepper, profile: HashProfile): Promise<string> {
  return hash(bind(input, pepper), { ...HASH_PROFILES[profile], algorithm: ARGON2ID, secret: pepper.root.pepper })
}

/** Whether the secret belongs to the stored hash. The comparison inside is constant-time. */
export function verifySecret(phc: string, input: HashInput, pepper: Pepper): Promise<boolean> {
  return verify(phc, bind(input, pepper), { secret: pepper.root.pepper })
}

/** Whether a stored hash was made with other parameters than today's. */
export function isOutdated(phc: string, profile: HashProfile): boolean {
  const { memoryCost, timeCost, parallelism } = HASH_PROFILES[profile]
  return !phc.startsWith(`$argon2id$v=19$m=${memoryCost},t=${timeCost},p=${parallelism}$`)
}

/** A profile as a number, for whoever has to compare it with that of another process. */
export function costNumber(profile: HashProfile): number {
  const { memoryCost, timeCost } = HASH_PROFILES[profile]
  return timeCost * 2 ** 24 + memoryCost
}

/** No part can hold a line feed, and the versions have different numbers of lines, so no two inputs share an encoding. */
function bind({ id, subject, secret }: HashInput, { root, version }: Pepper): string {
  if (version === 1) return `${id}\n${subject}\n${secret}`
  const digest = Buffer.from(root.secretMac(secret), 'latin1').toString('base64url')
  return `${id}\n${subject}\n${digest}\n2`
}
