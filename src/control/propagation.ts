/** Receipts: how many of the replicas that are alive have applied a change. */

import { setTimeout as sleep } from 'node:timers/promises'
import { databaseFailure } from '../db/outage.js'
import type { ControlParts } from './parts.js'
import { countReplicas } from './store.js'

export interface Propagation {
  /** Replicas that are alive: those that have confirmed the feed within `REVOCATION_MAX_STALENESS`. */
  readonly replicas: number
  /** Those of them that have applied the change. */
  readonly confirmed: number
  /** How long this call has waited for them. */
  readonly elapsed_ms: number
}

/** Seconds that a call waits unless it says otherwise, and at most. */
const DEFAULT_WAIT = 2
export const MAX_WAIT = 10

/** How often an open receipt is looked at. */
const INTERVAL_MS = 10

/**
 * Waits until every living replica has applied all changes of some keys, or the time is over. A replica that is gone
 * drops out when it has been silent for as long as it may serve from memory: by then it does not any more.
 *
 * @param keyIds UUIDs
 * @param waitSeconds longest wait; 0 asks once
 * @returns `null` when the database does not say: what the call did stands all the same
 */
export async function propagationOf({ db, config }: ControlParts, keyIds: readonly string[], waitSeconds: number): Promise<Propagation | null> {
  const start = performance.now()
  try {
    for (;;) {
      const { replicas, confirmed } = await countReplicas(db, keyIds, config.REVOCATION_MAX_STALENESS)
      const elapsed = performance.now() - start
      if (confirmed === replicas || elapsed + INTERVAL_MS > waitSeconds * 1000) return { replicas, confirmed, elapsed_ms: Math.round(elapsed) }
      await sleep(INTERVAL_MS)
    }
  } catch (error) {
    if (databaseFailure(error)) return null
    throw error
  }
}

/**
 * How long a `Prefer` header asks to wait (RFC 7240, section 4.3), in seconds: 2 without it, 10 at most. What it says
 * beyond that is none of ours, and ignored as that RFC has it.
 */
export function preferredWait(prefer: string | undefined): { readonly seconds: number; readonly isApplied: boolean } {
  const asked = /(?:^|[,;])\s*wait\s*=\s*"?(\d{1,9})"?\s*(?:$|[,;])/i.exec(prefer ?? '')?.[1]
  return asked === undefined ? { seconds: DEFAULT_WAIT, isApplied: false } : { seconds: Math.min(Number(asked), MAX_WAIT), isApplied: true }
}
