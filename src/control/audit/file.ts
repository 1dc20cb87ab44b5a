/** A file of audit events, one line of JSON each, that can be continued after a crash and read again. */

import { createReadStream } from 'node:fs'
import { open, type FileHandle } from 'node:fs/promises'
import { dirname } from 'node:path'
import { createInterface } from 'node:readline'
import { ConfigError } from '../../errors.js'
import type { TrailEvent } from './follow.js'

export interface TrailFile {
  /** The last event in it. */
  readonly last: TrailEvent | undefined
  /** Appends events. Resolves when they are on the disk. */
  append(events: readonly TrailEvent[]): Promise<void>
  close(): Promise<void>
}

/** How far from the end the last line is looked for. An event is much shorter. */
const TAIL = 1024 * 1024
const LINE_FEED = 0x0a

/**
 * Opens a file to continue it, or creates it. A last line that a crash left unfinished is removed: its event is written again.
 *
 * @throws ConfigError when the file holds something else
 */
export async function openTrailFile(path: string): Promise<TrailFile> {
  const file = await open(path, 'a+', 0o600).catch((error: NodeJS.ErrnoException) => {
    throw new ConfigError(`${path} cannot be opened (${error.code})`)
  })
  try {
    const last = await lastEvent(file, path)
    // The name of a new file is on the disk as well.
    const folder = await open(dirname(path), 'r')
    await folder.sync().finally(() => folder.close())
    return {
      last,
      async append(events) {
        await file.appendFile(toLines(events))
        await file.datasync()
      },
      close: () => file.close(),
    }
  } catch (error) {
    await file.close()
    throw error
  }
}

export function toLines(events: readonly TrailEvent[]): string {
  return events.map((event) => `${JSON.stringify(event)}\n`).join('')
}

/**
 * Reads a file from its beginning, some events at a time. A last line without its end was never finished, and is passed over.
 *
 * @throws ConfigError naming the first line that is no event
 */
export async function* readTrail(path: string, pageSize: number): AsyncGenerator<TrailEvent[]> {
  let page: TrailEvent[] = []
  let number = 0
  for await (const line of linesOf(path)) {
    const event = parseEvent(line)
    number++
    if (!event) throw new ConfigError(`${path}, line ${number}: this is no event`)
    if (page.push(event) < pageSize) continue
    yield page
    page = []
  }
  if (page.length > 0) yield page
}

/** Lines that were finished. */
async function* linesOf(path: string): AsyncGenerator<string> {
  const input = createReadStream(path)
  let endsWithLineFeed = true
  input.on('data', (chunk) => (endsWithLineFeed = (chunk as Buffer).at(-1) === LINE_FEED))
  let before: string | undefined
  try {
    for await (const line of createInterface({ input, crlfDelay: Infinity })) {
      if (before !== undefined) yield before
      before = line
    }
  } catch (error) {
    throw new ConfigError(`${path} cannot be read (${(error as NodeJS.ErrnoException).code})`)
  }
  if (before !== undefined && endsWithLineFeed) yield before
}

async function lastEvent(file: FileHandle, path: string): Promise<TrailEvent | undefined> {
  const { size } = await file.stat()
  const length = Math.min(size, TAIL)
  const { buffer } = await file.read(Buffer.alloc(length), 0, length, size - length)
  const end = buffer.lastIndexOf(LINE_FEED)
  if (end < 0 && length < size) throw new ConfigError(`${path} holds something else than events`)
  const kept = size - length + end + 1
  if (end < 0 && size > 0 && buffer[0] !== 0x7b) throw new ConfigError(`${path} holds something else than events`)
  const line = end < 0 ? undefined : buffer.subarray(buffer.lastIndexOf(LINE_FEED, end - 1) + 1, end).toString()
  const event = line === undefined ? undefined : parseEvent(line)
  if (line !== undefined && !event) throw new ConfigError(`${path} holds something else than events`)
  if (kept < size) await file.truncate(kept)
  return event
}

function parseEvent(line: string): TrailEvent | undefined {
  try {
    const event = JSON.parse(line) as TrailEvent
    const isEvent = /^\d{1,19}$/.test(event.id) && typeof event.type === 'string' && !Number.isNaN(Date.parse(event.at)) && typeof event.data === 'object' && event.data !== null
    return isEvent ? event : undefined
  } catch {
    return undefined
  }
}
