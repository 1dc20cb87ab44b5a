/** Waiting for a receipt for as long as a request prefers: the header `Prefer: wait=N`. */

import type { FastifyReply } from 'fastify'
import type { ControlDeps } from '../deps.js'
import type { Propagation, Receipts } from './receipts.js'

/** Seconds that a call waits unless it says otherwise, and at most. */
const DEFAULT_WAIT = 2
export const MAX_WAIT = 10

/** Which replicas have applied a change that was made, after waiting for as long as the request prefers. */
export async function receipt(
  { onReceipt }: ControlDeps,
  receipts: Receipts,
  request: { readonly headers: { readonly prefer?: string } },
  reply: FastifyReply,
  keyIds: readonly string[],
  { isRevocation }: { readonly isRevocation: boolean },
): Promise<Propagation | null> {
  const { seconds, isApplied } = preferredWait(request.headers.prefer)
  if (isApplied) reply.header('preference-applied', `wait=${seconds}`)
  const propagation = await receipts.of(keyIds, { waitSeconds: seconds, isRevocation })
  if (propagation) onReceipt?.(propagation.elapsed_ms / 1000, propagation.complete)
  return propagation
}

/**
 * How long a `Prefer` header asks to wait (RFC 7240, section 4.3), in seconds: 2 without it, 10 at most. Other
 * preferences are ignored, as that RFC has it.
 */
function preferredWait(prefer: string | undefined): { readonly seconds: number; readonly isApplied: boolean } {
  const asked = /(?:^|[,;])\s*wait\s*=\s*"?(\d{1,9})"?\s*(?:$|[,;])/i.exec(prefer ?? '')?.[1]
  return asked === undefined ? { seconds: DEFAULT_WAIT, isApplied: false } : { seconds: Math.min(Number(asked), MAX_WAIT), isApplied: true }
}
