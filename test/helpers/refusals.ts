/** Answers that must not tell two cases apart. */

import type { Test } from 'tap'
import type { Answer } from './service.js'

/** To the byte, but for the two headers that differ between any two answers. */
export function isSameAnswer(t: Test, actual: Answer, expected: Answer, what: string): void {
  t.same(told(actual), told(expected), what)
}

function told({ status, headers, text }: Answer) {
  const { 'x-request-id': _id, date: _date, ...rest } = headers
  return { status, text, headers: Object.entries(rest) }
}

/** A well-formed id that nothing has. */
export const NOTHING = { key: 'key_01jd9p5v3fe8rr2k7m4q9wx0zt', gateway: 'gw_01jd9p5v3fe8rr2k7m4q9wx0zt' } as const
