/** What commands share: exit codes, output, and where a key is read from. */

import { userInfo } from 'node:os'
import { text } from 'node:stream/consumers'
import type { Settings } from '../config.js'
import { ConfigError } from '../errors.js'

/** Exit codes; the last three are sysexits.h's EX_UNAVAILABLE, EX_SOFTWARE and EX_CONFIG. */
export const EXIT = { no: 1, usage: 2, unavailable: 69, internal: 70, config: 78 } as const

export function print(json: boolean | undefined, value: object, lines: () => string[]): void {
  process.stdout.write(json ? `${JSON.stringify(value, null, 2)}\n` : lines().map((line) => `${line}\n`).join(''))
}

/** Reads the key from standard input or the environment. Every user of the machine sees a command's arguments, and the shell's history keeps them. */
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
