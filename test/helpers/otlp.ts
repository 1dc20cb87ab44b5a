/** A receiver of traces: OTLP over HTTP, in protobuf, taken apart as `opentelemetry/proto/trace/v1/trace.proto` has it. */

import { once } from 'node:events'
import { createServer, type IncomingHttpHeaders } from 'node:http'
import type { AddressInfo } from 'node:net'
import { buffer } from 'node:stream/consumers'
import { gunzipSync } from 'node:zlib'
import type { Test } from 'tap'

export interface ReceivedSpan {
  readonly name: string
  /** In hexadecimal, as are the others; `parent` is empty where there is none. */
  readonly trace: string
  readonly id: string
  readonly parent: string
  readonly state: string
  readonly kind: 'internal' | 'server' | 'client'
  readonly isError: boolean
  readonly seconds: number
  readonly attributes: Record<string, string | number | boolean>
}

export interface Receiver {
  readonly url: string
  /** What was asked: its path and its headers. */
  readonly requests: { readonly url: string; readonly headers: IncomingHttpHeaders }[]
  /** Every byte that came, headers included, as Latin-1. */
  bytes(): string
  spans(): ReceivedSpan[]
  /** What is said of the process. */
  resource(): Record<string, string | number | boolean>
}

/** @param answer what is answered; nothing ever, where it is `null` */
export async function startReceiver(t: Pick<Test, 'teardown'>, answer: number | null = 200): Promise<Receiver> {
  const requests: Receiver['requests'] = []
  const bodies: Buffer[] = []
  const server = createServer(async (request, response) => {
    const sent = await buffer(request)
    requests.push({ url: request.url!, headers: request.headers })
    bodies.push(request.headers['content-encoding'] === 'gzip' ? gunzipSync(sent) : sent)
    if (answer !== null) response.writeHead(answer).end()
  }).listen(0, '127.0.0.1')
  await once(server, 'listening')
  t.teardown(() => (server.closeAllConnections(), server.close()))
  const resources = () => bodies.flatMap((body) => messages(body, 1))
  return {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    requests,
    bytes: () => JSON.stringify(requests) + bodies.map((body) => body.toString('latin1')).join('\n'),
    spans: () => resources().flatMap((resource) => messages(resource, 2)).flatMap((scope) => messages(scope, 2)).map(spanOf),
    resource: () => attributesOf(messages(resources()[0]!, 1)[0]!, 1),
  }
}

function spanOf(span: Buffer): ReceivedSpan {
  const [begin, end] = [7, 8].map((field) => fieldsOf(span, field)[0] as bigint)
  const status = messages(span, 15)[0]
  return {
    name: text(span, 5), trace: messages(span, 1)[0]!.toString('hex'), id: messages(span, 2)[0]!.toString('hex'), parent: messages(span, 4)[0]?.toString('hex') ?? '', state: text(span, 3),
    kind: ({ 1: 'internal', 2: 'server', 3: 'client' } as const)[Number(fieldsOf(span, 6)[0]) as 1 | 2 | 3],
    isError: status !== undefined && fieldsOf(status, 3)[0] === 2n,
    seconds: Number(end! - begin!) / 1e9,
    attributes: attributesOf(span, 9),
  }
}

function attributesOf(message: Buffer, field: number): Record<string, string | number | boolean> {
  return Object.fromEntries(
    messages(message, field).map((pair) => {
      const value = messages(pair, 2)[0]!
      const [flag, integer, real] = [2, 3, 4].map((kind) => fieldsOf(value, kind)[0] as bigint | undefined)
      if (flag !== undefined) return [text(pair, 1), flag === 1n]
      if (integer !== undefined) return [text(pair, 1), Number(integer)]
      if (real !== undefined) return [text(pair, 1), new Float64Array(new BigUint64Array([real]).buffer)[0]!]
      return [text(pair, 1), text(value, 1)]
    }),
  )
}

const text = (message: Buffer, field: number) => messages(message, field)[0]?.toString('utf8') ?? ''
const messages = (message: Buffer, field: number) => fieldsOf(message, field).filter((value): value is Buffer => typeof value !== 'bigint')

/** What a field of a message holds, as often as it is there: bytes, or a number. */
function fieldsOf(message: Buffer, wanted: number): (Buffer | bigint)[] {
  const found: (Buffer | bigint)[] = []
  let at = 0
  const varint = () => {
    let value = 0n
    for (let shift = 0n; ; shift += 7n) {
      const byte = BigInt(message[at++]!)
      value |= (byte & 0x7fn) << shift
      if (byte < 0x80n) return value
    }
  }
  const take = (length: number) => message.subarray(at, (at += length))
  while (at < message.length) {
    const tag = varint()
    const kind = Number(tag & 7n)
    const value = kind === 0 ? varint() : kind === 1 ? take(8).readBigUInt64LE() : kind === 2 ? take(Number(varint())) : BigInt(take(4).readUInt32LE())
    if (Number(tag >> 3n) === wanted) found.push(value)
  }
  return found
}
