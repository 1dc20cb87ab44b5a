/** A stream of server-sent events, as its bytes come. */

import { createParser, type EventSourceMessage } from 'eventsource-parser'
import type { Test } from 'tap'
import { eventually } from './eventually.js'

export interface Listening {
  readonly status: number
  readonly headers: Headers
  /** Every event so far. */
  readonly events: EventSourceMessage[]
  /** Those of a kind, their data parsed. */
  of(kind: string): any[]
  /** Resolves to the first event of a kind that holds something. */
  heard(kind: string, holds?: (data: any) => boolean): Promise<any>
  /** The id of the last event. */
  lastId(): string | undefined
  /** Whether the other end has ended it. */
  isOver(): boolean
  hangUp(): void
}

/** Listens at `/v1/changes`. */
export async function listen(t: Test, url: string, credential: string, lastEventId?: string): Promise<Listening> {
  const end = new AbortController()
  t.teardown(() => end.abort())
  const response = await fetch(`${url}/v1/changes`, {
    headers: { authorization: `Bearer ${credential}`, ...(lastEventId !== undefined && { 'last-event-id': lastEventId }) },
    signal: end.signal,
  })
  const events: EventSourceMessage[] = []
  let over = false
  const parser = createParser({ onEvent: (event) => events.push(event) })
  const of = (kind: string) => events.filter(({ event }) => event === kind).map(({ data }) => JSON.parse(data))
  void read()
  return {
    status: response.status,
    headers: response.headers,
    events,
    of,
    async heard(kind, holds = () => true) {
      let found: any
      await eventually(() => (found = of(kind).find(holds)) !== undefined)
      return found
    },
    lastId: () => events.at(-1)?.id,
    isOver: () => over,
    hangUp: () => end.abort(),
  }

  async function read(): Promise<void> {
    const decoder = new TextDecoder()
    try {
      for await (const chunk of response.body!) parser.feed(decoder.decode(chunk as Uint8Array, { stream: true }))
    } catch {
      // It was broken off.
    }
    over = true
  }
}
