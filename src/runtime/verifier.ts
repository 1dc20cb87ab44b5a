/** The engine that verifies Mecha keys and gateway credentials alike. */

import type { FastifyBaseLogger } from 'fastify'
import type { Kysely } from 'kysely'
import type { Gateway } from '../auth/gateways.js'
import type { Database } from '../db/tables.js'
import { Problem } from '../errors.js'
import type { Metrics } from '../http/metrics.js'
import { gatewaySubject, hashSecret, isOutdated, verifySecret, type HashProfile } from '../key/hash.js'
import type { CredentialKind } from '../key/id.js'
import type { Roots } from '../key/roots.js'
import { isTaggedByUs, parseToken, type Token } from '../key/token.js'
import { refusalOf, type Demand, type RefusalCode } from '../key/verdict.js'
import { claimFirstUse, findCredential, replaceHash, type CredentialRow } from './store.js'
import type { UsageRecorder } from './usage.js'

export interface VerifierParts {
  readonly db: Kysely<Database>
  readonly roots: Roots
  readonly profile: HashProfile
  readonly usage: UsageRecorder
  readonly metrics: Metrics
  readonly log: FastifyBaseLogger
}

export type Verdict = { readonly key: CredentialRow } | { readonly code: RefusalCode }
export type Verifier = ReturnType<typeof createVerifier>

/** How often a row that changes under a first use is read again. */
const ATTEMPTS = 3

export function createVerifier(parts: VerifierParts) {
  const { db, roots, profile, usage, metrics, log } = parts

  /** `refuse` decides about an authenticated row; the database's clock, in the row, is the time. */
  async function check(presented: string, kind: CredentialKind, refuse: (row: CredentialRow) => RefusalCode | undefined): Promise<Verdict> {
    const token = parseToken(presented)
    if (!token) return { code: 'malformed' }
    if (!isTaggedByUs(token, roots)) return { code: 'unknown' }
    for (let attempt = 0; attempt < ATTEMPTS; attempt++) {
      const row = await findCredential(db, token.id)
      if (!row || row.kind !== kind || !(await matches(row, token))) return { code: 'unknown' }
      const code = refuse(row)
      if (code) return { code }
      if (row.first_used_at || (await claimFirstUse(db, row))) {
        usage.seen(row.id, row.now)
        await improveHash(row, token)
        return { key: row }
      }
    }
    throw new Problem('database_unavailable', 'The key is being changed. Try again in a moment.', { headers: { 'retry-after': '1' } })
  }

  async function matches(row: CredentialRow, token: Token): Promise<boolean> {
    const root = roots.find(({ id }) => id === row.pepper_root)
    if (!root) throw new Problem('root_secret_missing', 'The key was hashed under a root secret that is not configured here.')
    const stop = metrics.argon2.startTimer({ operation: 'verify' })
    return verifySecret(row.hash, inputOf(row, token), root).finally(stop)
  }

  /** A row that was hashed with other parameters, or under an older pepper, is hashed again. */
  async function improveHash(row: CredentialRow, token: Token): Promise<void> {
    const [newest] = roots
    if (row.pepper_root === newest.id && !isOutdated(row.hash, profile)) return
    try {
      const stop = metrics.argon2.startTimer({ operation: 'hash' })
      const hash = await hashSecret(inputOf(row, token), newest, profile).finally(stop)
      await replaceHash(db, row, hash, newest.id)
    } catch (error) {
      // The key is valid all the same; its next verify tries again.
      log.warn({ err: error }, 'a hash could not be renewed')
    }
  }

  function counted(kind: CredentialKind, verdict: Verdict): Verdict {
    metrics.verifications.inc({ credential: kind, result: 'code' in verdict ? verdict.code : 'valid' })
    return verdict
  }

  /** What a gateway is told about a Mecha key. Keys of organizations that it does not serve are unknown to it. */
  async function verifyKey(presented: string, gateway: Gateway, demand: Demand): Promise<Verdict> {
    const verdict = await check(presented, 'mecha', (row) =>
      gateway.orgId !== null && gateway.orgId !== row.org_id ? 'unknown' : refusalOf(row, row.now, demand),
    )
    return counted('mecha', verdict)
  }

  /** The gateway behind a credential, or `undefined`. */
  async function verifyGateway(presented: string): Promise<Gateway | undefined> {
    const verdict = counted('gateway', await check(presented, 'gateway', (row) => refusalOf(row, row.now, {})))
    return 'key' in verdict ? { id: verdict.key.id, orgId: verdict.key.org_id } : undefined
  }

  return { verifyKey, verifyGateway }
}

function inputOf(row: CredentialRow, { secret }: Token) {
  return { id: row.id, subject: row.mecha ?? gatewaySubject(row.org_id), secret }
}
