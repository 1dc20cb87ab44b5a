/** First uses of keys, which are recorded before the answer: of one key once for all who ask about it, of a batch together. */

import type { Kysely } from 'kysely'
import type { Database } from '../../db/tables.js'
import type { OfOneHistory } from '../changes/one-history.js'
import type { Caller } from '../gateway-auth/callers.js'
import { SingleFlight } from './single-flight.js'
import { claimFirstUse, claimFirstUses, type CredentialRow } from './store.js'

export class FirstUses {
  readonly #claims = new SingleFlight<boolean>()

  constructor(
    private readonly db: Kysely<Database>,
    private readonly ofOneHistory: OfOneHistory,
  ) {}

  /**
   * Records a first use.
   *
   * @param by the gateway (UUID) that asks, if one does
   * @returns `false` when the row has changed since it was read
   */
  claim(row: CredentialRow, by: string | null, caller: Caller): Promise<boolean> {
    return this.#claims.join(row.hash, caller.signal, () => this.#claimOne(row, by))
  }

  /** Records first uses together, and one by one those of keys that somebody is changing. The answers are in the order of the rows. */
  async claimAll(rows: readonly CredentialRow[], by: string): Promise<boolean[]> {
    const claimed = new Set((await this.ofOneHistory(() => claimFirstUses(this.db, rows, by))).claimed)
    return Promise.all(rows.map(async (row, place) => claimed.has(place) || this.#claimOne(row, by)))
  }

  async #claimOne(row: CredentialRow, by: string | null): Promise<boolean> {
    return (await this.ofOneHistory(() => claimFirstUse(this.db, row, by))).isLive
  }
}

/** Records the first uses of some keys; says for each row, in their order, whether it is still as it was read. */
type ClaimAll = (rows: readonly CredentialRow[]) => Promise<readonly boolean[]>

/**
 * Gathers claims from some members until every one of them has made one or has left. A member whose claim is
 * answered is back among those who may make another, until it leaves: so no member waits for one that waits for it.
 */
export function gatherFirstUses(members: number, claimAll: ClaimAll) {
  let undecided = members
  let gathered: { readonly row: CredentialRow; readonly settle: (isLive: Promise<boolean>) => void }[] = []

  function arrive(): void {
    if (--undecided > 0 || gathered.length === 0) return
    const claims = gathered
    gathered = []
    undecided = claims.length
    const answers = claimAll(claims.map(({ row }) => row))
    for (const [place, { settle }] of claims.entries()) settle(answers.then((all) => all[place]!))
  }

  return {
    /** Records the first use of a row; `false` when it has changed since it was read. */
    claim: (row: CredentialRow) =>
      new Promise<boolean>((settle) => {
        gathered.push({ row, settle })
        arrive()
      }),
    /** A member is done. */
    leave: arrive,
  }
}
