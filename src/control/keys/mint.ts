/** Making the secret of a key or of a gateway credential. */

import { makeToken } from '../../credentials/token.js'
import type { CredentialKind } from '../../credentials/id.js'
import type { ControlDeps } from '../deps.js'
import type { Secret } from './store.js'

/** A new secret for an id: the plaintext to reveal, and what is stored in its place. */
export interface Minted extends Secret {
  readonly id: string
  readonly plaintext: string
}

/** Makes and hashes a secret. It takes argon2's time, so it is done before a transaction and never within one. */
export async function mint({ roots, config, hasher }: ControlDeps, kind: CredentialKind, id: string, subject: string): Promise<Minted> {
  const [root] = roots
  const token = makeToken(kind === 'mecha' ? config.KEY_PREFIX : config.GATEWAY_PREFIX, id, root)
  const hashed = await hasher.hash({ id, subject, secret: token.secret }, root)
  return { id, plaintext: token.text, tag_root: root.id, ...hashed }
}
