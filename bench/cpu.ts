/** Time on a core, in milliseconds, by the kernel's own account: the same on a busy machine, where rates are not. */

import { readdirSync, readFileSync } from 'node:fs'
import type { Client } from 'pg'

/** The kernel counts what it adds up over threads and processes in hundredths of a second (USER_HZ). */
const MS_PER_TICK = 10

/** Of a process and its children, as PostgreSQL is, those that have ended included. */
export function familyCpu(parent: number): number {
  const alive = processes().filter((pid) => pid === parent || statOf(pid)?.[1] === parent)
  const [, , ended = 0, endedInKernel = 0] = statOf(parent)?.slice(11) ?? []
  return alive.reduce((sum, pid) => sum + timeOf(`/proc/${pid}/schedstat`), (ended + endedInKernel) * MS_PER_TICK)
}

/** Of a process: all its threads, those that have ended included. */
export function processCpu(pid: number): number {
  const [user = 0, inKernel = 0] = statOf(pid)?.slice(11) ?? []
  return (user + inKernel) * MS_PER_TICK
}

/** Of the first thread of a process, which is the one that runs JavaScript. */
export function threadCpu(pid: number): number {
  return timeOf(`/proc/${pid}/task/${pid}/schedstat`)
}

export async function findPostmaster(client: Client): Promise<number> {
  const { rows } = await client.query<{ pid: number }>('SELECT pg_backend_pid() AS pid')
  return statOf(rows[0]!.pid)![1]!
}

function processes(): number[] {
  return readdirSync('/proc').filter((name) => /^\d+$/.test(name)).map(Number)
}

/** What follows the name in `/proc/…/stat`: the state, the parent, and so on. `undefined`, and no time, of what has ended meanwhile. */
function statOf(pid: number): number[] | undefined {
  return read(`/proc/${pid}/stat`)?.replace(/^.*\) /s, '').split(' ').map(Number)
}

function timeOf(path: string): number {
  return Number(read(path)?.split(' ')[0] ?? 0) / 1e6
}

function read(path: string): string | undefined {
  try {
    return readFileSync(path, 'utf8')
  } catch {
    return undefined
  }
}
