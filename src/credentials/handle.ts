/** Mecha handles: `name^crew`, as in `sales^acmecorp`. */

const PART = '[a-z0-9](?:[a-z0-9_-]{0,62}[a-z0-9])?'

/** The handle's shape, for schemas and the database's CHECK. */
export const HANDLE_PATTERN = `^${PART}\\^${PART}$`

/** A crew by itself. */
export const CREW = new RegExp(`^${PART}$`)
export const CREW_RULE = 'must be a crew: 1 to 64 lower case letters, digits, "-" or "_", starting and ending with a letter or digit'

/** The rule in words, for errors. */
export const HANDLE_RULE =
  'must be name^crew: each part 1 to 64 lower case letters, digits, "-" or "_", starting and ending with a letter or digit'

export interface Handle {
  readonly handle: string
  readonly name: string
  readonly crew: string
}

/** Takes a valid handle apart. */
export function parseHandle(handle: string): Handle {
  const [name = '', crew = ''] = handle.split('^')
  return { handle, name, crew }
}
