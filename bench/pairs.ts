/** How a ratio is measured: both sides in turn, pair by pair, so that a machine that slows down slows both. */

export interface Plan {
  readonly pairs: number
  /** Of each measurement. */
  readonly seconds: number
  readonly connections: number
  /** Rows of the large table, and keys of the memory that is weighed. */
  readonly keys: number
}

/** What came of one figure. */
export interface Result {
  readonly value: number
  /** The least and the greatest of the pairs: how far one strays from the others. */
  readonly range?: readonly [number, number]
  /** What it was made of: medians over the pairs, in the units that the names say. */
  readonly of: Readonly<Record<string, number>>
}

export interface Figure {
  readonly name: string
  readonly goal: { readonly least: number } | { readonly most: number }
  measure(plan: Plan): Promise<Result>
}

/** Numbers of one side in one turn. The first of them is what the ratio is of. */
export type Measurement = Readonly<Record<string, number>>

/** One turn of each side to warm up, then the pairs. The median of their ratios is what counts. */
export async function compare(plan: Plan, one: () => Promise<Measurement>, other: () => Promise<Measurement>): Promise<Result> {
  const sides: [Measurement[], Measurement[]] = [[], []]
  for (let pair = 0; pair <= plan.pairs; pair++) {
    const measured = [await one(), await other()] as const
    if (pair > 0) sides.forEach((side, i) => side.push(measured[i]!))
  }
  const [ones, others] = sides
  const ratios = ones.map((measured, i) => first(measured) / first(others[i]!))
  return { value: median(ratios), range: [Math.min(...ratios), Math.max(...ratios)], of: { ...medians(ones), ...medians(others) } }
}

export function median(numbers: readonly number[]): number {
  const sorted = numbers.toSorted((a, b) => a - b)
  const middle = sorted.length / 2
  return (sorted[Math.ceil(middle) - 1]! + sorted[Math.floor(middle)]!) / 2
}

/** The value below which a part of the numbers lies: the nearest rank. */
export function percentile(numbers: readonly number[], part: number): number {
  return numbers.toSorted((a, b) => a - b)[Math.ceil(part * numbers.length) - 1]!
}

function medians(side: readonly Measurement[]): Measurement {
  return Object.fromEntries(Object.keys(side[0]!).map((name) => [name, median(side.map((measured) => measured[name]!))]))
}

function first(measured: Measurement): number {
  return Object.values(measured)[0]!
}

/** What several figures are of is made, or measured, when the first of them asks for it. */
export function once<Args extends unknown[], T>(make: (...args: Args) => Promise<T>): (...args: Args) => Promise<T> {
  let made: Promise<T> | undefined
  return (...args) => (made ??= make(...args))
}
