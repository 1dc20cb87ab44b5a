/** A short soak: each kind of trouble once, or nearly. `npm run soak` is the long one. */

import t from 'tap'
import { soak } from './soak/soak.js'

const SECONDS = 30
const SEED = 20

t.test('through kills, cuts, restarts and stops, nothing acknowledged is lost and no verdict is wrong', { timeout: 180_000 }, async (t) => {
  const { counts, complaints } = await soak({ seconds: SECONDS, seed: SEED, say: (line) => t.comment(line) })
  t.same(complaints, [])
  const { acceptedAfterBound, acceptedAfterReceipt, refusedThoughValid, unavailableOutsideOutage, issuesLost, changesLost, eventsMissing, ...done } = counts
  t.same({ acceptedAfterBound, acceptedAfterReceipt, refusedThoughValid, unavailableOutsideOutage, issuesLost, changesLost, eventsMissing },
    { acceptedAfterBound: 0, acceptedAfterReceipt: 0, refusedThoughValid: 0, unavailableOutsideOutage: 0, issuesLost: 0, changesLost: 0, eventsMissing: 0 })
  for (const [what, count] of Object.entries(done)) if (what !== 'unknownOutcomes' && what !== 'unavailableInOutage') t.ok(count > 0, `${what}: ${count}`)
})
