/**
 * The soak's own record of what was acknowledged, and what may therefore be answered. Nothing here asks the service.
 *
 * A key is valid or not from the moment at which that was acknowledged, and either while it is being changed. What
 * lies further back than the bound has to be so everywhere; what a complete receipt has confirmed, at once on every replica.
 *
 * What is promised when there are two databases: a change counts that was acknowledged by the one that survives. The soak
 * changes nothing while it promotes a copy, and the old one takes no writes from before the copy is complete, so that
 * all that was ever acknowledged is in the copy. The old one goes on answering questions with what it knows, and that is
 * never good enough for a replica whose feed sees the new one.
 *
 * What is promised when an older backup is restored: what ended before stays ended, once the ends were replayed. Keys that
 * were issued since the backup are gone, and must be refused like ended ones. Whether a key that was disabled when the
 * backup was made and has been enabled since is good after it is not promised.
 *
 * What is promised when the database's clock is stepped: all but what ends by that clock alone. A key that is rotated with an
 * overlap ends when that does, and is good again when the clock goes back to before. So the soak rotates without one.
 */

/** `REVOCATION_MAX_STALENESS` of the replicas, and `maxStalenessMs` of the gateways with the SDK. */
export const BOUND_MS = 3000
/** How long after the end of a fault every replica is ready again, with a feed that vouches for what it has cached. */
export const RECOVERY_MS = 15_000
/** How long after it a pool may still hand out a connection that went dead without a word: pg keeps an idle one for 10 s, and a statement on it takes 6 s to fail. */
export const DEAD_CONNECTIONS_MS = 16_000

/** A key as the record has it. Times are of this process's monotonic clock, in milliseconds. */
export interface Known {
  readonly id: string
  readonly plaintext: string
  readonly mecha: string
  /** `changing`: a change was sent and has not been acknowledged. */
  state: 'valid' | 'invalid' | 'changing'
  /** Since when it is so. */
  since: number
  /** What made it so. */
  by: string
  /** Whether a receipt said that all replicas have applied what made it so. */
  confirmed: boolean
  /** Whether it was enabled again: a replica may hold for as long as the bound that it is disabled. */
  enabledAgain: boolean
  /** Ended for good: revoked, or rotated away. */
  ended: boolean
  /** Whether it was issued after a backup that was restored. */
  gone: boolean
}

type Recorded = Pick<Known, 'state' | 'since' | 'by' | 'confirmed' | 'enabledAgain'>

/** What was true of each key at some time. */
export type Checkpoint = ReadonlyMap<Known, Known['state']>

export interface Asked {
  /** What the record said when the question was sent. */
  readonly before: Recorded
  readonly sentAt: number
  /** Whether receipts speak of who was asked: they count replicas, and no gateways. */
  readonly isReplica: boolean
  /** Which question to whom, for complaints. */
  readonly what: string
}

/** What an answer came to. */
export type Outcome =
  | { readonly kind: 'verdict'; readonly valid: boolean; readonly code?: string | undefined }
  /** Nobody can say now: 503, or no answer at all. */
  | { readonly kind: 'unavailable'; readonly why: string }
  /** An answer that nothing explains: 500, or a refusal of the one who asks. */
  | { readonly kind: 'wrong'; readonly status: number; readonly why: string }

/** Each of these is 0 where the service keeps its word. */
export const FAILURES = [
  'acceptedAfterBound', 'acceptedAfterReceipt', 'refusedThoughValid', 'unavailableOutsideOutage', 'status500', 'wrongAnswers',
  'issuesLost', 'changesLost', 'eventsMissing', 'slowRecoveries',
] as const

const DONE = [
  'issued', 'revoked', 'revokedByHolder', 'killed', 'rotated', 'disabled', 'enabled', 'verified', 'verifiedByGateways', 'completeReceipts', 'openReceipts',
  'unknownOutcomes', 'unavailableInOutage', 'outages',
] as const

type Counts = Record<(typeof FAILURES)[number] | (typeof DONE)[number], number>

const MAX_COMPLAINTS = 20
/** Of the keys that were changed last: those most likely to be answered wrongly. */
const RECENT = 40

export class Checker {
  readonly keys: Known[] = []
  readonly recent: Known[] = []
  readonly counts = Object.fromEntries([...FAILURES, ...DONE].map((name) => [name, 0])) as Counts
  /** What went wrong, in words: the first of each kind. */
  readonly complaints: string[] = []
  readonly #outages: { readonly what: string; readonly from: number; to: number }[] = []
  readonly #start = performance.now()
  /** When the last question had no verdict. */
  lastUnavailableAt = -Infinity

  issued(id: string, plaintext: string, mecha: string): Known {
    const known: Known = { id, plaintext, mecha, state: 'valid', since: performance.now(), by: 'being issued', confirmed: false, enabledAgain: false, ended: false, gone: false }
    this.keys.push(known)
    this.counts.issued++
    return known
  }

  /** A change is about to be sent. */
  changing(key: Known): void {
    key.state = 'changing'
  }

  acknowledged(key: Known, state: 'valid' | 'invalid', by: string, { confirmed = false, ended = false } = {}): void {
    Object.assign(key, { state, since: performance.now(), by, confirmed, ended, enabledAgain: state === 'valid' })
    this.recent.push(key)
    if (this.recent.length > RECENT) this.recent.shift()
  }

  /** A receipt that was open is complete now. */
  confirmed(key: Known): void {
    Object.assign(key, { confirmed: true, since: performance.now() })
  }

  /** What the record says of all keys, for {@link restoring}. Nothing may be changing. */
  checkpoint(): Checkpoint {
    return new Map(this.keys.map((key) => [key, key.state]))
  }

  /** A restore of what was true at a checkpoint begins. Nothing may be changing; the result says that it is over. */
  restoring(checkpoint: Checkpoint): () => void {
    for (const [key, then] of checkpoint) if (then === 'invalid' && key.state === 'valid') key.state = 'changing'
    const gone = this.keys.filter((key) => !checkpoint.has(key) && !key.gone)
    for (const key of gone) Object.assign(key, { state: key.ended ? 'invalid' : 'changing', gone: true })
    return () => {
      for (const key of gone) if (!key.ended) Object.assign(key, { state: 'invalid', since: performance.now(), by: 'a restore', ended: true, confirmed: false })
    }
  }

  asked(key: Known, what: string, { isReplica = true } = {}): Asked {
    const { state, since, by, confirmed, enabledAgain } = key
    return { before: { state, since, by, confirmed, enabledAgain }, sentAt: performance.now(), isReplica, what }
  }

  /** Holds an answer against what the record said when it was asked for, unless that changed meanwhile. */
  answered(key: Known, { before, sentAt, isReplica, what }: Asked, outcome: Outcome): void {
    if (outcome.kind === 'unavailable') return this.unavailable(sentAt, performance.now(), `${what}: ${outcome.why}`)
    if (outcome.kind === 'wrong') return this.wrong(outcome.status, `${what}: ${outcome.why}`)
    const { valid, code } = outcome
    this.counts[isReplica ? 'verified' : 'verifiedByGateways']++
    if (before.state !== key.state || before.since !== key.since || before.confirmed !== key.confirmed) return
    const ageMs = Math.round(sentAt - before.since)
    const isOld = ageMs > BOUND_MS
    if (before.state === 'invalid' && valid && before.confirmed && isReplica) this.#failed('acceptedAfterReceipt', `${what} accepted ${key.id} ${ageMs} ms after a complete receipt for ${before.by}`)
    if (before.state === 'invalid' && valid && isOld) this.#failed('acceptedAfterBound', `${what} accepted ${key.id} ${ageMs} ms after it ended by ${before.by}`)
    // A new key is good at once: nobody has held anything else of it. One that was enabled again is within the bound.
    const mayBeDisabled = before.enabledAgain && !isOld && (code === undefined || code === 'disabled')
    if (before.state === 'valid' && !valid && !mayBeDisabled) this.#failed('refusedThoughValid', `${what} refused ${key.id} as ${code ?? 'not good'}, ${ageMs} ms after it became good by ${before.by}`)
  }

  /** Declares that something is out of order from now on, and returns what declares that it is over, or will be. */
  outage(what: string): (inMs?: number) => void {
    const outage = { what, from: performance.now(), to: Infinity }
    this.#outages.push(outage)
    this.counts.outages++
    return (inMs = 0) => void (outage.to = performance.now() + inMs)
  }

  /** A question that had no verdict: allowed only while something was out of order. */
  unavailable(sentAt: number, answeredAt: number, why: string): void {
    this.lastUnavailableAt = answeredAt
    if (this.#outages.some(({ from, to }) => sentAt <= to && answeredAt >= from)) this.counts.unavailableInOutage++
    else this.#failed('unavailableOutsideOutage', `outside of any outage, ${why}`)
  }

  /** An answer that may never be given, outage or not. */
  wrong(status: number, why: string): void {
    this.#failed(status === 500 ? 'status500' : 'wrongAnswers', why)
  }

  lost(kind: 'issuesLost' | 'changesLost' | 'eventsMissing', what: string): void {
    this.#failed(kind, what)
  }

  recovered(what: string, tookMs: number): void {
    if (tookMs > RECOVERY_MS) this.#failed('slowRecoveries', `all was well only ${Math.round(tookMs)} ms after the end of: ${what}`)
  }

  /** Whether nothing happened that must not. */
  get isClean(): boolean {
    return FAILURES.every((kind) => this.counts[kind] === 0)
  }

  #failed(kind: (typeof FAILURES)[number], complaint: string): void {
    this.counts[kind]++
    const now = this.#outages.at(-1)?.what
    const ofThisKind = this.complaints.filter((said) => said.startsWith(`${kind} `)).length
    if (ofThisKind * FAILURES.length < MAX_COMPLAINTS * 2) this.complaints.push(`${kind} at ${Math.round(performance.now() - this.#start)} ms (${now ?? 'no fault yet'}): ${complaint}`)
  }
}
