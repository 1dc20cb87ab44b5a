/**
 * The soak's own record of what was acknowledged, and what may therefore be answered. Nothing here asks the service.
 *
 * A key is valid or not from the moment at which that was acknowledged, and either while it is being changed. What
 * lies further back than the bound has to be so on every replica; what a receipt has confirmed, at once.
 */

import { BOUND_MS } from './cluster.js'

/** A key as the record has it. Times are of the monotonic clock, in milliseconds. */
export interface Known {
  readonly id: string
  readonly plaintext: string
  readonly mecha: string
  /** `changing`: a change was sent and has not been acknowledged. */
  state: 'valid' | 'invalid' | 'changing'
  /** Since when it is so. */
  since: number
  /** Whether all replicas said that they had applied what made it so. */
  confirmed: boolean
  /** Ended for good: revoked, or rotated away. */
  ended: boolean
}

export interface Verdict {
  readonly sentAt: number
  readonly answeredAt: number
  readonly valid: boolean
  readonly code?: string
}

export class Checker {
  readonly keys: Known[] = []
  readonly counts = {
    issued: 0, revoked: 0, rotated: 0, disabled: 0, enabled: 0, verified: 0, unknownOutcomes: 0,
    acceptedAfterBound: 0, acceptedAfterReceipt: 0, refusedThoughValid: 0, unavailableOutsideOutage: 0, unavailableInOutage: 0,
    outages: 0, issuesLost: 0, changesLost: 0, eventsMissing: 0,
  }
  /** What went wrong, in words: the first of it. */
  readonly complaints: string[] = []
  readonly #outages: { readonly what: string; readonly from: number; to: number }[] = []

  issued(id: string, plaintext: string, mecha: string): Known {
    const known: Known = { id, plaintext, mecha, state: 'valid', since: performance.now(), confirmed: false, ended: false }
    this.keys.push(known)
    this.counts.issued++
    return known
  }

  /** A change is about to be sent. */
  changing(key: Known): void {
    key.state = 'changing'
  }

  acknowledged(key: Known, state: 'valid' | 'invalid', { confirmed = false, ended = false } = {}): void {
    Object.assign(key, { state, since: performance.now(), confirmed, ended })
  }

  /** What the record said when the question was sent is what the answer is held against, unless it changed meanwhile. */
  snapshot({ state, since, confirmed }: Known): Pick<Known, 'state' | 'since' | 'confirmed'> {
    return { state, since, confirmed }
  }

  judge(key: Known, before: Pick<Known, 'state' | 'since' | 'confirmed'>, { sentAt, valid, code }: Verdict): void {
    this.counts.verified++
    if (before.state !== key.state || before.since !== key.since) return
    const isOld = sentAt - before.since > BOUND_MS
    if (before.state === 'invalid' && valid && before.confirmed) this.#count('acceptedAfterReceipt', `${key.id} was accepted ${sentAt - before.since} ms after a receipt`)
    if (before.state === 'invalid' && valid && isOld) this.#count('acceptedAfterBound', `${key.id} was accepted ${sentAt - before.since} ms after it ended`)
    // A new key is good at once: nobody has held anything else of it. One that was enabled again is within the bound.
    if (before.state === 'valid' && !valid && (isOld || code !== 'disabled')) this.#count('refusedThoughValid', `${key.id} was refused as ${code}`)
  }

  /** Declares that something is out of order from now on, and returns what declares that it is over. */
  outage(what: string): () => void {
    const outage = { what, from: performance.now(), to: Infinity }
    this.#outages.push(outage)
    this.counts.outages++
    return () => void (outage.to = performance.now())
  }

  /** A question that had no verdict: allowed only while something was out of order. */
  unavailable(sentAt: number, answeredAt: number, why: string): void {
    if (this.#outages.some(({ from, to }) => sentAt <= to && answeredAt >= from)) this.counts.unavailableInOutage++
    else this.#count('unavailableOutsideOutage', `outside of any outage: ${why}`)
  }

  lost(kind: 'issuesLost' | 'changesLost' | 'eventsMissing', what: string): void {
    this.#count(kind, what)
  }

  /** Whether nothing happened that must not. */
  get isClean(): boolean {
    const { acceptedAfterBound, acceptedAfterReceipt, refusedThoughValid, unavailableOutsideOutage, issuesLost, changesLost, eventsMissing } = this.counts
    return acceptedAfterBound + acceptedAfterReceipt + refusedThoughValid + unavailableOutsideOutage + issuesLost + changesLost + eventsMissing === 0
  }

  #count(kind: keyof Checker['counts'], complaint: string): void {
    this.counts[kind]++
    if (this.complaints.length < 20) this.complaints.push(complaint)
  }
}
