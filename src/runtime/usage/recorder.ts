/** When keys were last used, and presented after their end: gathered in memory, written together. */

import type { RefusalCode } from '../../protocol/verdict.js'

/** A key's own note of when it was last used. */
export interface Use {
  /** A UUID. */
  readonly id: string
  readonly org_id: string | null
  /** In milliseconds. */
  usedAt: number
  /** The gateway (UUID) that asked about the key or reported it. */
  usedBy: string | null
  /** Whether the note waits to be written. */
  isGathered: boolean
  /** Whether a gateway says so, whose organization is in `org_id`: its key may be another's, or no key at all. */
  readonly isReported?: true
}

/** Why a key is over. */
export type EndCode = Extract<RefusalCode, 'revoked' | 'expired' | 'disabled'>

/** A key that was proved and refused, because it is over. */
export interface Refusal {
  readonly id: string
  /** In milliseconds. */
  at: number
  code: EndCode
}

export interface UsageDeps {
  /** Each of them writes everything that it is given, or rejects. */
  readonly writeUses: (uses: readonly Use[]) => Promise<void>
  readonly writeRefusals: (refusals: readonly Refusal[]) => Promise<void>
  /** What a crash can lose at most. */
  readonly intervalMs: number
  /** Most keys whose uses wait to be written, and most whose refusals do. */
  readonly max: number
  readonly onError: (error: unknown) => void
}

/** Keys in one statement: few enough that no verify waits long for it, and that it reads by the index. */
const PIECE = 1000
/** Notes that are sorted at once, which takes some milliseconds: rows of neighbouring ids lie together. */
const SLICE = 20_000

export class UsageRecorder {
  readonly #uses: Pending<Use>
  readonly #refusals: Pending<Refusal>
  #writing: Promise<void> = Promise.resolve()
  readonly #timer: NodeJS.Timeout

  constructor(private readonly deps: UsageDeps) {
    const { max, intervalMs } = deps
    this.#uses = new Pending(max, (use) => (use.isGathered = false))
    this.#refusals = new Pending(max)
    this.#timer = setInterval(() => void this.flush(), intervalMs).unref()
  }

  /** Keys whose uses or refusals wait to be written. */
  get pending(): number {
    return this.#uses.size + this.#refusals.size
  }

  /** Uses and refusals that were given up for want of room. */
  get dropped(): number {
    return this.#uses.dropped + this.#refusals.dropped
  }

  /**
   * Notes a use of a key that was proved here, at a time in milliseconds. The note stands with the key: most uses have
   * nothing to look up.
   */
  seen(use: Use, at: number, by: string | null): void {
    use.usedAt = at
    use.usedBy = by
    if (!use.isGathered) this.#gather(use.id, use)
  }

  /** Notes a use that a gateway reports, of a key (UUID) that may not be its organization's. */
  reported(id: string, at: number, { id: by, org_id }: { readonly id: string; readonly org_id: string | null }): void {
    // Apart for each organization, so that no gateway can push out what another organization's reports.
    this.#gather(`${id} ${org_id ?? ''}`, { id, org_id, usedAt: at, usedBy: by, isGathered: false, isReported: true })
  }

  /** Notes that a key was presented, proved and refused. */
  refused(id: string, at: number, code: EndCode): void {
    const refusal = this.#refusals.get(id)
    if (!refusal) return this.#refusals.set(id, { id, at, code })
    refusal.at = at
    refusal.code = code
  }

  /** Writes what has been gathered. One flush runs at a time; what could not be written is kept for the next. */
  flush(): Promise<void> {
    this.#writing = this.#writing.then(() => this.#writeAll())
    return this.#writing
  }

  /** Writes the rest and ends. */
  async stop(): Promise<void> {
    clearInterval(this.#timer)
    await this.flush()
  }

  /** A key that was read anew has a second note: the later one counts. */
  #gather(name: string, use: Use): void {
    const other = this.#uses.get(name)
    if (other && other.usedAt > use.usedAt) {
      use.usedAt = other.usedAt
      use.usedBy = other.usedBy
    }
    if (other) other.isGathered = false
    use.isGathered = true
    this.#uses.set(name, use)
  }

  async #writeAll(): Promise<void> {
    const { writeUses, writeRefusals, onError } = this.deps
    try {
      await this.#uses.writeAll(writeUses, (name, use) => this.#gather(name, use))
      await this.#refusals.writeAll(writeRefusals, (name, refusal) => this.#refusals.get(name) ?? this.#refusals.set(name, refusal))
    } catch (error) {
      onError(error)
    }
  }
}

/** Notes that wait to be written, by name. What is more than there is room for pushes out the oldest. */
class Pending<Note> {
  readonly #notes = new Map<string, Note>()
  #dropped = 0

  constructor(
    private readonly max: number,
    private readonly onTaken: (note: Note) => void = () => {},
  ) {}

  get size(): number {
    return this.#notes.size
  }

  get dropped(): number {
    return this.#dropped
  }

  get(name: string): Note | undefined {
    return this.#notes.get(name)
  }

  set(name: string, note: Note): void {
    // Some at once: to look for the first of a map costs more, the more have been taken from its front.
    if (this.#notes.size >= this.max && !this.#notes.has(name)) this.#dropped += this.#take(Math.ceil(this.max / 10)).length
    this.#notes.set(name, note)
  }

  /** Writes what is there now, in pieces and in the order of names, up to the first that fails: the rest is kept. */
  async writeAll(write: (notes: readonly Note[]) => Promise<void>, keep: (name: string, note: Note) => unknown): Promise<void> {
    for (let left = this.#notes.size; left > 0; left -= SLICE) {
      const slice = this.#take(Math.min(SLICE, left)).sort(([a], [b]) => (a < b ? -1 : 1))
      for (let at = 0; at < slice.length; at += PIECE) {
        try {
          await write(slice.slice(at, at + PIECE).map(([, note]) => note))
        } catch (error) {
          for (const [name, note] of slice.slice(at)) keep(name, note)
          throw error
        }
      }
    }
  }

  #take(count: number): [string, Note][] {
    const taken: [string, Note][] = []
    for (const entry of this.#notes) {
      if (taken.length === count) break
      taken.push(entry)
      this.#notes.delete(entry[0])
      this.onTaken(entry[1])
    }
    return taken
  }
}
