/** Proves by argon2id that a presented secret is the one that a row was made for. */

import type { Caller } from '../gateway-auth/callers.js'
import { findPepper, gatewaySubject } from '../../credentials/hash.js'
import type { Hasher } from '../../credentials/hash-queue.js'
import type { Roots } from '../../credentials/roots.js'
import type { Token } from '../../credentials/token.js'
import { Problem } from '../../errors.js'
import { SingleFlight } from './single-flight.js'
import type { CredentialRow } from './store.js'

export class SecretProver {
  /** Callers who present the same secret share one computation. */
  readonly #proofs = new SingleFlight<boolean>()

  constructor(
    private readonly roots: Roots,
    private readonly hasher: Pick<Hasher, 'verify'>,
  ) {}

  /**
   * Whether the token's secret belongs to the row.
   *
   * @param digest of the token, which names the computation without the secret
   * @throws Problem `root_secret_missing` where the row was hashed under a root secret that is not configured
   */
  async prove(token: Token, row: CredentialRow, digest: string, caller: Caller): Promise<boolean> {
    const pepper = findPepper(row.pepper_root, this.roots)
    if (!pepper) throw new Problem('root_secret_missing', 'The key was hashed under a root secret that is not configured here.')
    const input = hashInputOf(row, token)
    const name = [digest, row.hash, input.subject].join(' ')
    return this.#proofs.join(name, caller.signal, (all) => this.hasher.verify(row.hash, input, pepper, all))
  }
}

/** What argon2id hashes: the secret, and what the row says that it is for. */
export function hashInputOf(row: CredentialRow, { secret }: Token) {
  return { id: row.id, subject: subjectOf(row), secret }
}

/** Whom a credential is of: a Mecha, or the gateways of an organization. */
export function subjectOf({ mecha, org_id }: Pick<CredentialRow, 'mecha' | 'org_id'>): string {
  return mecha ?? gatewaySubject(org_id)
}
