/**
 * The engine that verifies Mecha keys and gateway credentials alike.
 *
 * A key that was verified before is answered from memory, without a query, argon2 or a promise: one keyed digest, one
 * comparison, one look at the clock. The change feed says what has changed, and vouches for the rest. Anything else
 * takes the cold path: checksum, tag, row, hash.
 */

import { setMaxListeners } from 'node:events'
import type { FastifyBaseLogger } from 'fastify'
import type { Kysely } from 'kysely'
import type { Gateway } from '../gateway-auth/authenticate.js'
import type { Hasher } from '../../credentials/hash-queue.js'
import { isDatabaseOutage } from '../../db/outage.js'
import type { Database } from '../../db/tables.js'
import { feedStale, Problem } from '../../errors.js'
import type { Metrics } from '../../http/metrics.js'
import { findPepper, gatewaySubject, isOutdated, nameOfPepper, type Pepper } from '../../credentials/hash.js'
import type { CredentialKind } from '../../credentials/id.js'
import type { Roots } from '../../credentials/roots.js'
import { bareToken, isTaggedByUs, parseToken, type Token } from '../../credentials/token.js'
import { refusalAt } from '../../credentials/status.js'
import type { RefusalCode, Requirements } from '../../protocol/verdict.js'
import { isCurrent, type CachedKey, type KeyCache } from './credential-cache.js'
import { createChecks } from './single-flight.js'
import type { Clock } from '../../clock.js'
import type { Feed } from '../changes/feed.js'
import { gatherFirstUses } from './first-use.js'
import type { OfOneHistory } from '../changes/one-history.js'
import type { Read, Rows } from './fence.js'
import { claimFirstUse, claimFirstUses, replaceHash, type CredentialRow, type FoundCredential } from './store.js'
import type { UsageRecorder } from '../usage/recorder.js'

export interface VerifierParts {
  readonly db: Kysely<Database>
  readonly roots: Roots
  readonly hasher: Hasher
  /** Whether all replicas hash with the same parameters. */
  readonly hashAlike: () => Promise<boolean>
  readonly rows: Rows
  readonly ofOneHistory: OfOneHistory
  readonly cache: KeyCache
  readonly clock: Clock
  readonly feed: Pick<Feed, 'isFresh' | 'now'>
  readonly usage: UsageRecorder
  readonly metrics: Metrics
  readonly log: FastifyBaseLogger
}

/** Who waits for an answer. Asked for its signal only when there is something to wait for. */
export interface Waiting {
  /** Aborted when nobody waits any more. */
  readonly signal: AbortSignal
  /** Records a first use together with others that this caller waits for; see {@link claimFirstUse}. */
  readonly claim?: (row: CredentialRow) => Promise<boolean>
}

/** A key of a batch, and what is asked of it. */
export interface Asked extends Requirements {
  readonly key: string
}

/** The key if it is good, and otherwise why it is not. */
export type Verdict = CachedKey | RefusalCode
export type Verifier = ReturnType<typeof createVerifier>

/** A key, and the row that it was proved against. */
interface Proven {
  readonly key: CachedKey
  readonly found: FoundCredential
}

/** Who asks, whom no credential needs to tell: about the keys of an organization or of all, and as which gateway or as none. */
export interface Asker {
  readonly id: string | null
  readonly org_id: string | null
}
const NO_GATEWAY: Asker = { id: null, org_id: null }
const NO_REQUIREMENTS: Requirements = {}

export function createVerifier(parts: VerifierParts) {
  const { db, roots, hasher, hashAlike, rows, ofOneHistory, cache, clock, feed, usage, metrics, log } = parts
  const proofs = createChecks<boolean>()
  const firstUses = createChecks<boolean>()
  const improving = new Set<string>()

  /** What a gateway is told about a Mecha key. Keys of organizations that it does not serve are unknown to it. */
  function verifyKey(presented: string, asker: Asker, requirements: Requirements, caller: Waiting): Verdict | Promise<Verdict> {
    return check(presented, 'mecha', caller, asker, requirements)
  }

  /**
   * As {@link verifyKey}, of many keys at once and in their order. What has to be read is one statement, and what is used
   * for the first time is one more. Where one of them cannot be decided, none is answered, but not before the others are
   * in memory: who tries again has less to ask.
   */
  async function verifyKeys(asked: readonly Asked[], gateway: Gateway, { signal }: Waiting): Promise<Verdict[]> {
    // Every key that waits for something listens to it.
    setMaxListeners(0, signal)
    const firstUses = gatherFirstUses(asked.length, (all) => claimAll(all, gateway.id))
    const caller = { signal, claim: firstUses.claim }
    const verdicts = asked.map(async ({ key, ...requirements }) => {
      try {
        return await verifyKey(key, gateway, requirements, caller)
      } finally {
        firstUses.leave()
      }
    })
    await Promise.allSettled(verdicts)
    return Promise.all(verdicts)
  }

  /** The gateway behind a credential, or `undefined`. */
  function verifyGateway(presented: string, caller: Waiting): Gateway | undefined | Promise<Gateway | undefined> {
    const verdict = checkGateway(presented, caller)
    return verdict instanceof Promise ? verdict.then(gatewayOf) : gatewayOf(verdict)
  }

  /** The same, or why there is none. */
  function checkGateway(presented: string, caller: Waiting): Verdict | Promise<Verdict> {
    return check(presented, 'gateway', caller, NO_GATEWAY, NO_REQUIREMENTS)
  }

  /** The Mecha key itself, presented by who holds it: no gateway asks. */
  function verifyHeld(presented: string, caller: Waiting): Verdict | Promise<Verdict> {
    return check(presented, 'mecha', caller, NO_GATEWAY, NO_REQUIREMENTS)
  }

  /** Whether a Mecha key is good, by its id (UUID): for who holds what was made of the key when it was verified. */
  async function isGood(id: string, gateway: Gateway): Promise<boolean> {
    const at = clock.now()
    const held = cache.findById(id)
    const isFresh = feed.isFresh(at)
    if (isFresh && held && isCurrent(held)) return held.kind === 'mecha' && !refuse(held, feed.now(at), gateway, NO_REQUIREMENTS)
    const isGoodRow = (found: FoundCredential | undefined) => found?.row.kind === 'mecha' && !refuse(found.row, found.now.getTime(), gateway, NO_REQUIREMENTS)
    return rows.withRow(id, isGoodRow).catch((error: unknown) => {
      throw held && !isFresh && isUnavailable(error) ? feedStale() : error
    })
  }

  /**
   * The key or the gateway credential that somebody holds, good or not: what its secret was proved against, now or before.
   * To hold it is no use of it. `undefined` when it was never issued here, or is none any more.
   */
  async function proveHeld(presented: string, caller: Waiting): Promise<CachedKey | undefined> {
    const text = bareToken(presented)
    const isFresh = feed.isFresh()
    const held = cache.find(text)
    if (isFresh && held && isCurrent(held)) return held
    const token = parseToken(text)
    if (!token || !isTaggedByUs(token, roots) || (isFresh && cache.isRefused(text))) return undefined
    return (await withProven(token, caller, (proven) => proven ?? null))?.key
  }

  function check(presented: string, kind: CredentialKind, caller: Waiting, asker: Asker, requirements: Requirements): Verdict | Promise<Verdict> {
    const text = bareToken(presented)
    const at = clock.now()
    const isFresh = feed.isFresh(at)
    const held = cache.find(text)
    if (isFresh && held && isCurrent(held)) {
      // What is good as something else is known to be nothing of this kind.
      if (held.kind !== kind) return counted(kind, 'unknown')
      const now = feed.now(at)
      const code = refuse(held, now, asker, requirements)
      if (code) {
        metrics.lookups.hit++
        return counted(kind, noted(held, code, now))
      }
      if (held.used) {
        metrics.lookups.hit++
        usage.seen(held, now, asker.id)
        return counted(kind, held)
      }
    }
    const token = parseToken(text)
    if (!token) return counted(kind, 'malformed')
    if (!isTaggedByUs(token, roots) || (isFresh && cache.isRefused(text))) return counted(kind, 'unknown')
    metrics.lookups.miss++
    return checkInDatabase(token, kind, caller, asker, requirements).then(
      (verdict) => counted(kind, verdict),
      (error: unknown) => {
        throw held && !isFresh && isUnavailable(error) ? feedStale() : error
      },
    )
  }

  /** The cold path: what is read goes together with what others read, and is decided by the database's clock. */
  function checkInDatabase(token: Token, kind: CredentialKind, caller: Waiting, asker: Asker, requirements: Requirements): Promise<Verdict> {
    const { claim = (row) => firstUses.join(row.hash, caller.signal, () => claimOne(row, asker.id)) } = caller
    return withProven<Verdict>(token, caller, async (proven, read) => {
      if (!proven) return 'unknown'
      const { key, found } = proven
      // By the time that it is now: argon2 or a first use may have been waited for until the key's end.
      const decide = () => (key.kind === kind ? refuse(key, timeOf(found, read), asker, requirements) : 'unknown')
      const code = decide()
      if (code) return noted(key, code, timeOf(found, read))
      key.used ||= await claim(found.row)
      // What changed while this was waited for counts as well.
      if (!key.used || read.isOvertaken) return undefined
      const late = decide()
      if (late) return noted(key, late, timeOf(found, read))
      usage.seen(key, timeOf(found, read), asker.id)
      void improveHash(found.row, token)
      return key
    })
  }

  /** Gives a key that was proved against its row, or nothing when there is none; again for as long as `use` gives nothing back. */
  function withProven<T>(token: Token, caller: Waiting, use: (proven: Proven | undefined, read: Read) => T | undefined | Promise<T | undefined>): Promise<T> {
    return rows.withRow<T>(token.id, async (found, read) => {
      const digest = found && (await prove(token, found.row, caller))
      if (read.isOvertaken) return undefined
      if (!digest) cache.refuse(token)
      return use(digest ? { key: cache.keep(read, found, digest), found } : undefined, read)
    })
  }

  /** The database's time in milliseconds, from when a row was read and what has passed since it was asked for: never slow. */
  function timeOf({ now }: FoundCredential, { askedAt }: Read): number {
    return now.getTime() + (clock.now() - askedAt)
  }

  /** Records a first use; `false` when the row has changed since it was read. */
  async function claimOne(row: CredentialRow, by: string | null): Promise<boolean> {
    return (await ofOneHistory(() => claimFirstUse(db, row, by))).isLive
  }

  /** Records first uses together, and one by one those of keys that somebody is changing. */
  async function claimAll(all: readonly CredentialRow[], by: string): Promise<boolean[]> {
    const claimed = new Set((await ofOneHistory(() => claimFirstUses(db, all, by))).claimed)
    return Promise.all(all.map(async (row, place) => claimed.has(place) || claimOne(row, by)))
  }

  /** The digest of a token that belongs to the row: by argon2, or by having been proved against the same hash before. */
  async function prove(token: Token, row: CredentialRow, caller: Waiting): Promise<string | undefined> {
    const before = cache.find(token.text)
    if (before && before.hash === row.hash && subjectOf(before) === subjectOf(row)) return before.digest
    const pepper = findPepper(row.pepper_root, roots)
    if (!pepper) throw new Problem('root_secret_missing', 'The key was hashed under a root secret that is not configured here.')
    const digest = cache.digest(token)
    const input = inputOf(row, token)
    const name = [digest, row.hash, input.subject].join(' ')
    return (await proofs.join(name, caller.signal, (all) => hasher.verify(row.hash, input, pepper, all))) ? digest : undefined
  }

  /**
   * A row that was hashed under an older pepper, with an older input or with other parameters is hashed again. No answer waits for it.
   * For the sake of its parameters alone one row at a time is: a hash that is as good as ever is no reason to write every key at once.
   */
  async function improveHash(row: CredentialRow, token: Token): Promise<void> {
    const [root] = roots
    const isMadeAs = (version: Pepper['version']) => row.pepper_root === nameOfPepper({ root, version })
    const hasOtherCost = isOutdated(row.hash, hasher.profile)
    if ((isMadeAs(2) && (!hasOtherCost || improving.size > 0)) || improving.has(row.id)) return
    improving.add(row.id)
    try {
      const isForNothing = isMadeAs(await hasher.version()) && !(hasOtherCost && (await hashAlike()))
      if (!isForNothing) await replaceHash(db, row, await hasher.hash(inputOf(row, token), root))
    } catch (error) {
      // The key is what it is all the same; its next verify tries again.
      log.warn({ err: error }, 'a hash could not be renewed')
    } finally {
      improving.delete(row.id)
    }
  }

  /** That a key was presented which is over: who still needs it. What was asked of a good key says nothing about it. */
  function noted({ id }: CachedKey, code: RefusalCode, now: number): RefusalCode {
    if (code === 'revoked' || code === 'expired' || code === 'disabled') usage.refused(id, now, code)
    return code
  }

  function counted(kind: CredentialKind, verdict: Verdict): Verdict {
    metrics.verified(kind, typeof verdict === 'string' ? verdict : 'valid')
    return verdict
  }

  return { verifyKey, verifyKeys, verifyGateway, checkGateway, verifyHeld, isGood, proveHeld }
}

/** Decides about an authenticated key at an instant, in milliseconds. */
function refuse(key: CachedKey | CredentialRow, now: number, { org_id }: Asker, requirements: Requirements): RefusalCode | undefined {
  return org_id !== null && org_id !== key.org_id ? 'unknown' : refusalAt(key, now, requirements)
}

function isUnavailable(error: unknown): boolean {
  return isDatabaseOutage(error) || (error instanceof Problem && error.code === 'database_unavailable')
}

function gatewayOf(verdict: Verdict): Gateway | undefined {
  return typeof verdict === 'string' ? undefined : verdict
}

function inputOf(row: CredentialRow, { secret }: Token) {
  return { id: row.id, subject: subjectOf(row), secret }
}

function subjectOf({ mecha, org_id }: Pick<CredentialRow, 'mecha' | 'org_id'>): string {
  return mecha ?? gatewaySubject(org_id)
}
