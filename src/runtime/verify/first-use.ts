/** First uses of the keys of one batch: recorded together, when the last of them is known. */

import type { CredentialRow } from './store.js'

/** Records the first uses of some keys; says for each row, in their order, whether it is still as it was read. */
type ClaimAll = (rows: readonly CredentialRow[]) => Promise<readonly boolean[]>

/**
 * Gathers claims from some members until every one of them has made one or has left. A member whose claim is
 * answered is back among those who may make another, until it leaves: so nobody waits for who waits for them.
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
