/** What commands share. */

import { userInfo } from 'node:os'
import { text } from 'node:stream/consumers'
import type { Settings } from '../config.js'
import { ConfigError } from '../errors.js'

/** Exit codes; the last three are sysexits.h's EX_UNAVAILABLE, EX_SOFTWARE and EX_CONFIG. */
export const EXIT = { no: 1, usage: 2, unavailable: 69, internal: 70, config: 78 } as const

export function print(json: boolean | undefined, value: object, lines: () => string[]): void {
  process.stdout.write(json ? `${JSON.stringify(value, null, 2)}\n` : lines().map((line) => `${line}\n`).join(''))
}

/** Never an argument: arguments are seen by every user of the machine, and kept in the shell's history. */
export async function readKey(config: Settings): Promise<string> {
  const key = process.stdin.isTTY ? config.MECHA_KEY : (await text(process.stdin)).trim() || config.MECHA_KEY
  if (!key) throw new ConfigError('give the key on standard input, or in MECHA_KEY')
  return key
}

/** A container may run as a user id that has no name. */
export function userName(): string {
  try {
    return userInfo().username
  } catch {
    return `uid-${process.getuid?.()}`
  }
}
