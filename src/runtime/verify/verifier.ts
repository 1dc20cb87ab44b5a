/**
 * Verifies Mecha keys and gateway credentials alike.
 *
 * A key that was verified before is answered from memory, without a query, argon2 or a promise: one keyed digest, one comparison, one look at the
 * clock. Any other key takes the cold path: checksum, tag, row, hash. What may be answered from memory, and when a row has to be read again, is
 * for the fence to say (`fence.ts`). Both paths stand in one file, because they have to decide alike.
 */

import { setMaxListeners } from 'node:events'
import type { Clock } from '../../clock.js'
import type { CredentialKind } from '../../credentials/id.js'
import type { Roots } from '../../credentials/roots.js'
import { bareToken, isTaggedByUs, parseToken, type Token } from '../../credentials/token.js'
import { refusalAt } from '../../credentials/status.js'
import { isDatabaseOutage } from '../../db/outage.js'
import { feedStale, Problem } from '../../errors.js'
import type { Metrics } from '../../http/metrics.js'
import type { RefusalCode, Requirements } from '../../protocol/verdict.js'
import type { Feed } from '../changes/feed.js'
import type { Gateway } from '../gateway-auth/authenticate.js'
import type { Caller, GatewayAuthenticator } from '../gateway-auth/callers.js'
import type { UsageRecorder } from '../usage/recorder.js'
import type { CachedKey } from './credential-cache.js'
import type { Fence } from './fence.js'
import { gatherFirstUses, type FirstUses } from './first-use.js'
import type { HashRenewal } from './hash-renewal.js'
import type { CredentialRow, FoundCredential } from './store.js'

export interface VerifierDeps {
  readonly fence: Fence
  readonly firstUses: FirstUses
  readonly hashRenewal: HashRenewal
  readonly roots: Roots
  readonly clock: Clock
  readonly feed: Pick<Feed, 'now'>
  readonly usage: UsageRecorder
  readonly metrics: Metrics
}

/** A key of a batch, and what is asked of it. */
export interface BatchKey extends Requirements {
  readonly key: string
}

/** The key if it is good, and otherwise why it is not. */
export type Verdict = CachedKey | RefusalCode

/** In whose name a key is asked about. */
export interface Asker {
  /** The gateway (UUID), if one asks. */
  readonly id: string | null
  /** The organization whose keys it may know of, or `null` for all. */
  readonly org_id: string | null
}

/** A caller who may record first uses in a way of its own: together with those of other keys. */
interface VerifyCaller extends Caller {
  readonly claim?: (row: CredentialRow) => Promise<boolean>
}

const NO_GATEWAY: Asker = { id: null, org_id: null }
const NO_REQUIREMENTS: Requirements = {}

export class Verifier implements GatewayAuthenticator {
  readonly #fence: Fence
  readonly #roots: Roots
  readonly #clock: Clock
  readonly #feed: Pick<Feed, 'now'>
  readonly #usage: UsageRecorder
  readonly #metrics: Metrics

  constructor(private readonly deps: VerifierDeps) {
    this.#fence = deps.fence
    this.#roots = deps.roots
    this.#clock = deps.clock
    this.#feed = deps.feed
    this.#usage = deps.usage
    this.#metrics = deps.metrics
  }

  /** What a gateway is told about a Mecha key. Keys of organizations that it does not serve are unknown to it. */
  verifyKey(presented: string, asker: Asker, requirements: Requirements, caller: Caller): Verdict | Promise<Verdict> {
    return this.#check(presented, 'mecha', caller, asker, requirements)
  }

  /**
   * As {@link verifyKey}, of many keys at once and in their order. What has to be read is one statement, and what is used
   * for the first time is one more. Where one of them cannot be decided, none is answered, but not before the others are
   * in memory, so that a second attempt has less to read.
   */
  async verifyKeys(keys: readonly BatchKey[], gateway: Gateway, { signal }: Caller): Promise<Verdict[]> {
    // Every key that waits for something adds a listener, and Node.js would warn of a leak.
    setMaxListeners(0, signal)
    const firstUses = gatherFirstUses(keys.length, (rows) => this.deps.firstUses.claimAll(rows, gateway.id))
    const caller: VerifyCaller = { signal, claim: firstUses.claim }
    const verdicts = keys.map(async ({ key, ...requirements }) => {
      try {
        return await this.verifyKey(key, gateway, requirements, caller)
      } finally {
        firstUses.leave()
      }
    })
    await Promise.allSettled(verdicts)
    return Promise.all(verdicts)
  }

  /** The gateway behind a credential, or `undefined`. */
  verifyGateway(presented: string, caller: Caller): Gateway | undefined | Promise<Gateway | undefined> {
    const verdict = this.checkGateway(presented, caller)
    return verdict instanceof Promise ? verdict.then(gatewayOf) : gatewayOf(verdict)
  }

  /** The same, or why there is none. */
  checkGateway(presented: string, caller: Caller): Verdict | Promise<Verdict> {
    return this.#check(presented, 'gateway', caller, NO_GATEWAY, NO_REQUIREMENTS)
  }

  /** The Mecha key itself, presented by its holder: no gateway asks. */
  verifyPresented(presented: string, caller: Caller): Verdict | Promise<Verdict> {
    return this.#check(presented, 'mecha', caller, NO_GATEWAY, NO_REQUIREMENTS)
  }

  /** Whether a Mecha key is good, by its id (UUID): for whoever has a token that was made of the key when it was verified. */
  async isGood(id: string, gateway: Gateway): Promise<boolean> {
    const at = this.#clock.now()
    const cached = this.#fence.findById(id, at)
    if (cached) return cached.kind === 'mecha' && !refuse(cached, this.#feed.now(at), gateway, NO_REQUIREMENTS)
    const isUnvouched = this.#fence.isUnvouched({ id }, at)
    const isGoodRow = (found: FoundCredential | undefined) => found?.row.kind === 'mecha' && !refuse(found.row, found.now.getTime(), gateway, NO_REQUIREMENTS)
    return this.#fence.withRow(id, isGoodRow).catch((error: unknown) => {
      throw isUnvouched && isUnavailable(error) ? feedStale() : error
    })
  }

  /**
   * The key or the gateway credential that somebody presents, good or not: what its secret was proved against, now or before.
   * To present it here is no use of it. `undefined` when it was never issued here, or is none any more.
   */
  async provePresented(presented: string, caller: Caller): Promise<CachedKey | undefined> {
    const text = bareToken(presented)
    const at = this.#clock.now()
    const cached = this.#fence.find(text, at)
    if (cached) return cached
    const token = parseToken(text)
    if (!token || !isTaggedByUs(token, this.#roots) || this.#fence.isRefused(text, at)) return undefined
    return (await this.#fence.withProven(token, caller, (proven) => proven ?? null))?.key
  }

  #check(presented: string, kind: CredentialKind, caller: VerifyCaller, asker: Asker, requirements: Requirements): Verdict | Promise<Verdict> {
    const text = bareToken(presented)
    const at = this.#clock.now()
    const cached = this.#fence.find(text, at)
    const known = cached && this.#checkCached(cached, kind, at, asker, requirements)
    if (known) return this.#counted(kind, known)
    const token = parseToken(text)
    if (!token) return this.#counted(kind, 'malformed')
    if (!isTaggedByUs(token, this.#roots) || this.#fence.isRefused(text, at)) return this.#counted(kind, 'unknown')
    this.#metrics.lookups.miss++
    const isUnvouched = this.#fence.isUnvouched(token, at)
    return this.#checkInDatabase(token, kind, caller, asker, requirements).then(
      (verdict) => this.#counted(kind, verdict),
      (error: unknown) => {
        throw isUnvouched && isUnavailable(error) ? feedStale() : error
      },
    )
  }

  /** The hot path. Nothing is decided about a good key whose first use has yet to be recorded. */
  #checkCached(cached: CachedKey, kind: CredentialKind, at: number, asker: Asker, requirements: Requirements): Verdict | undefined {
    // A credential of one kind is known to be none of the other.
    if (cached.kind !== kind) return 'unknown'
    const now = this.#feed.now(at)
    const code = refuse(cached, now, asker, requirements)
    if (!code && !cached.used) return undefined
    this.#metrics.lookups.hit++
    if (code) return this.#noted(cached, code, now)
    this.#usage.seen(cached, now, asker.id)
    return cached
  }

  /** The cold path: the row is read together with others, and the database's clock decides. */
  #checkInDatabase(token: Token, kind: CredentialKind, caller: VerifyCaller, asker: Asker, requirements: Requirements): Promise<Verdict> {
    const fence = this.#fence
    return fence.withProven<Verdict>(token, caller, async (proven, read) => {
      if (!proven) return 'unknown'
      const { key, found } = proven
      // By the time that it is now: argon2 or a first use may have been waited for until the key's end.
      const decide = () => (key.kind === kind ? refuse(key, fence.timeOf(found, read), asker, requirements) : 'unknown')
      const code = decide()
      if (code) return this.#noted(key, code, fence.timeOf(found, read))
      key.used ||= await this.#claim(found.row, asker, caller)
      // What changed while this was waited for counts as well.
      if (!key.used || read.isOvertaken) return undefined
      const late = decide()
      if (late) return this.#noted(key, late, fence.timeOf(found, read))
      this.#usage.seen(key, fence.timeOf(found, read), asker.id)
      void this.deps.hashRenewal.renew(found.row, token)
      return key
    })
  }

  #claim(row: CredentialRow, asker: Asker, caller: VerifyCaller): Promise<boolean> {
    return caller.claim ? caller.claim(row) : this.deps.firstUses.claim(row, asker.id, caller)
  }

  /** Notes that a key was presented which is over: it tells who still needs it. A good key that did not meet the requirements is not noted. */
  #noted({ id }: CachedKey, code: RefusalCode, now: number): RefusalCode {
    if (code === 'revoked' || code === 'expired' || code === 'disabled') this.#usage.refused(id, now, code)
    return code
  }

  #counted(kind: CredentialKind, verdict: Verdict): Verdict {
    this.#metrics.verified(kind, typeof verdict === 'string' ? verdict : 'valid')
    return verdict
  }
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
