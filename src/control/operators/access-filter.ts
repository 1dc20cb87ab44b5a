/** What an operator may see and change: their organization, and within it some crews or all. */

import { parseHandle } from '../../credentials/handle.js'

export interface AccessFilter {
  /** `null`: what belongs to no organization, which only the command line can see. */
  readonly orgId: string | null
  readonly crews: readonly string[] | undefined
}

/** The operator's crews that a listing has to read, each once; `undefined` if they are not narrowed to some. Of one Mecha, it is its crew alone. */
export function crewsToList({ crews }: AccessFilter, mecha: string | undefined): string[] | undefined {
  return crews && [...new Set(crews)].filter((crew) => mecha === undefined || crew === parseHandle(mecha).crew)
}
