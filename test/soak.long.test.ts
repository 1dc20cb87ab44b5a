/** A short soak: as many kinds of faults as there is time for, the worst first. `npm run soak` is the long one. */

import t from 'tap'
import { FAILURES } from './soak/checker.js'
import type { FaultName } from './soak/faults.js'
import { soak } from './soak/soak.js'

const SECONDS = 35
const SEED = 20
const FAULTS: FaultName[] = ['feed-moves', 'restore-in-place', 'suspend-replica', 'database-clock', 'half-open', 'read-only', 'kill-replica', 'kill-database', 'cut-off-one', 'suspend-gateway']

t.test('through all that can be taken away, nothing acknowledged is lost and no verdict is wrong', { timeout: 180_000 }, async (t) => {
  const { counts, complaints } = await soak({ seconds: SECONDS, seed: SEED, only: FAULTS, say: (line) => t.comment(line) })
  t.same(complaints, [])
  for (const kind of FAILURES) t.equal(counts[kind], 0, kind)
  for (const kind of ['issued', 'revoked', 'revokedByHolder', 'rotated', 'disabled', 'enabled', 'verified', 'verifiedByGateways', 'completeReceipts'] as const) t.ok(counts[kind] > 0, `${kind}: ${counts[kind]}`)
})
