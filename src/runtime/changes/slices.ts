/** Long work in slices, between which everything else that a process does has its turn. */

import { setImmediate } from 'node:timers/promises'

/** Works on items one after another, on so many of them at a stretch. An iterable that grows meanwhile is followed to its end. */
export async function inSlices<T>(items: Iterable<T>, perSlice: number, work: (item: T) => void): Promise<void> {
  let left = perSlice
  for (const item of items) {
    if (left === 0) {
      await setImmediate()
      left = perSlice
    }
    left--
    work(item)
  }
}

/** The pieces of a list, each of so many items and the last of what is left. */
export function* piecesOf<T>(items: readonly T[], size: number): Generator<T[]> {
  for (let at = 0; at < items.length; at += size) yield items.slice(at, at + size)
}
