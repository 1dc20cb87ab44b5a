/** Time on a core, in milliseconds, by the kernel's own account: the same on a busy machine, where rates are not. */

import { readdirSync, readFileSync } from 'node:fs'
import type { Client } from 'pg'

/** Of a process and its children, as PostgreSQL is. */
export function familyCpu(parent: number): number {
  return processes().filter((pid) => pid === parent || parentOf(pid) === parent).reduce((sum, pid) => sum + timeOf(`/proc/${pid}/schedstat`), 0)
}

/** Of the first thread of a process, which is the one that runs JavaScript. */
export function threadCpu(pid: number): number {
  return timeOf(`/proc/${pid}/task/${pid}/schedstat`)
}

export async function findPostmaster(client: Client): Promise<number> {
  const { rows } = await client.query<{ pid: number }>('SELECT pg_backend_pid() AS pid')
  return parentOf(rows[0]!.pid)!
}

function processes(): number[] {
  return readdirSync('/proc').filter((name) => /^\d+$/.test(name)).map(Number)
}

/** `undefined`, and no time, of what has ended meanwhile. */
function parentOf(pid: number): number | undefined {
  const stat = read(`/proc/${pid}/stat`)
  return stat === undefined ? undefined : Number(stat.split(') ')[1]!.split(' ')[1])
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
