/** What is read from the database has to be of the history that the feed follows: nothing would be told of its end otherwise. */

import type { FastifyBaseLogger } from 'fastify'
import { isHeld } from '../../db/history.js'
import { databaseRestored, feedStale } from '../../errors.js'
import type { Feed } from './feed.js'

export interface OneHistoryParts {
  readonly feed: Pick<Feed, 'isOfHistory' | 'isAtReadOnlyDatabase' | 'doubt'>
  /** Drops the connections that are open now. */
  readonly renewConnections: () => void
  readonly log: FastifyBaseLogger
}

/** Sends a statement whose answer names the history that it is of, and gives the answer if that is the feed's. */
export type OfOneHistory = <T extends { readonly history: string }>(send: () => Promise<T>) => Promise<T>

/**
 * Holds answers against the feed. One of another history is asked for again, on a new connection and after the feed has
 * looked where it is itself; meanwhile nothing is answered from memory.
 *
 * @returns a function that throws Problem `feed_stale` where the two go on to disagree: one of them is at a server that is
 *   not, or no longer, the one that counts, and nobody can say which; also where the database takes no writes, for another one
 *   may be the primary by now; and `database_restored` where it is one that went back
 */
export function holdToOneHistory({ feed, renewConnections, log }: OneHistoryParts): OfOneHistory {
  let isTold = false
  return async (send) => {
    for (let attempt = 0; ; attempt++) {
      const answer = await send()
      if (feed.isOfHistory(answer.history)) {
        isTold = false
        if (isHeld(answer.history)) throw databaseRestored()
        if (feed.isAtReadOnlyDatabase) throw feedStale()
        return answer
      }
      if (!isTold) log.warn('the database answered out of another history than the change feed is of: its connections are dropped, and nothing is answered from memory until both agree')
      isTold = true
      if (attempt > 0) throw feedStale()
      renewConnections()
      await feed.doubt()
    }
  }
}
