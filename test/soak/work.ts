/** What is asked of the service all the while: changes of keys, and verdicts on them by every way to have one. */

import { setTimeout as sleep } from 'node:timers/promises'
import { oneOf, type Random } from './chance.js'
import type { Checker, Known, Outcome } from './checker.js'
import { ORGANIZATION, type Cluster, type Replica } from './cluster.js'

export interface Work {
  readonly cluster: Cluster
  readonly checker: Checker
  readonly gate: Gate
  /** A gateway credential. */
  readonly credential: string
  readonly random: Random
}

/** Longest wait for an answer: longer than the service lets anything take. */
const PATIENCE_MS = 15_000
const MECHAS_PER_WORKER = 4
const LIVING_PER_WORKER = 40
const BATCH = 10
/** Between two changes of a worker, at most; and between two questions of an asker. */
const CHANGE_PAUSE_MS = 150
const ASK_PAUSE_MS = 5

/** Holds up changes, so that for a while none is under way. */
export class Gate {
  #underWay = 0
  #closed: Promise<void> | undefined

  async pass<T>(act: () => Promise<T>): Promise<T> {
    while (this.#closed) await this.#closed
    this.#underWay++
    try {
      return await act()
    } finally {
      this.#underWay--
    }
  }

  async whileClosed<T>(act: () => Promise<T>): Promise<T> {
    let open = () => {}
    this.#closed = new Promise((resolve) => (open = resolve))
    try {
      while (this.#underWay > 0) await sleep(5)
      return await act()
    } finally {
      this.#closed = undefined
      open()
    }
  }
}

// ── Changes ──

/** A worker changes only keys of its own, of Mechas of its own, so that it knows in what order that happened. */
export async function change(work: Work, worker: number, over: AbortSignal): Promise<void> {
  const { random, gate } = work
  const mechas = Array.from({ length: MECHAS_PER_WORKER }, (_, i) => `w${worker}-${i}^${ORGANIZATION}`)
  const own: Known[] = []
  while (!over.aborted) {
    await gate.pass(async () => {
      const living = own.filter(({ ended }) => !ended)
      const key = living[random(living.length)]
      const act = random(100)
      if (!key || (act < 35 && living.length < LIVING_PER_WORKER)) own.push(...(await issue(work, oneOf(mechas, random))))
      else if (act < 50) await revoke(work, key)
      else if (act < 60) await revokeByHolder(work, key)
      else if (act < 72) own.push(...(await rotate(work, key)))
      else if (act < 74) await revokeAll(work, key.mecha, living.filter(({ mecha }) => mecha === key.mecha))
      else await setEnabled(work, key, key.state !== 'valid')
    })
    await sleep(random(CHANGE_PAUSE_MS))
  }
}

async function issue(work: Work, mecha: string): Promise<Known[]> {
  const answer = await attempt(work, 'POST', '/v1/keys', { mecha })
  return answer ? [work.checker.issued(answer.body.key.id, answer.body.plaintext_key, mecha)] : []
}

/** Revoking is repeated until it is acknowledged: it is idempotent and final. */
async function revoke(work: Work, key: Known): Promise<void> {
  const { checker } = work
  checker.changing(key)
  key.ended = true
  for (;;) {
    const answer = await attempt(work, 'POST', `/v1/keys/${key.id}/revoke`, { reason: 'soak' })
    if (!answer) continue
    checker.counts.revoked++
    checker.acknowledged(key, 'invalid', 'being revoked', { ended: true, confirmed: isComplete(checker, answer) })
    return followUp(work, key)
  }
}

/** A receipt that was open may be complete later, for whoever asks again. */
async function followUp(work: Work, key: Known): Promise<void> {
  if (key.confirmed || work.random(2) === 0) return
  await sleep(work.random(1000))
  const { body } = await send(work.cluster, pickReplica(work), 'GET', `/v1/keys/${key.id}`)
  if (isReceipt(body?.propagation)) work.checker.confirmed(key)
}

/** The kill switch. */
async function revokeAll(work: Work, mecha: string, keys: readonly Known[]): Promise<void> {
  const { checker } = work
  for (const key of keys) Object.assign(key, { state: 'changing', ended: true })
  for (;;) {
    const answer = await attempt(work, 'POST', `/v1/mechas/${encodeURIComponent(mecha)}/revoke-keys`, { reason: 'soak' })
    if (!answer) continue
    checker.counts.killed++
    const confirmed = isComplete(checker, answer)
    for (const key of keys) checker.acknowledged(key, 'invalid', 'the kill switch', { ended: true, confirmed })
    return
  }
}

/** By who holds the key, whom nobody gives a receipt. */
async function revokeByHolder(work: Work, key: Known): Promise<void> {
  const { cluster, checker, random } = work
  if (key.state !== 'valid') return
  checker.changing(key)
  key.ended = true
  const sentAt = performance.now()
  const replica = oneOf(cluster.replicas, random)
  const answer = await form(replica, '/v1/revoke-token', { token: key.plaintext })
  if (answer.status !== 200) {
    record(checker, answer, sentAt, `a holder's revocation on ${nameOf(cluster, replica)}`)
    return giveUp(work, key)
  }
  checker.counts.revokedByHolder++
  checker.acknowledged(key, 'invalid', 'its holder', { ended: true })
}

async function setEnabled(work: Work, key: Known, enabled: boolean): Promise<void> {
  const { checker } = work
  checker.changing(key)
  const answer = await attempt(work, 'PATCH', `/v1/keys/${key.id}`, { enabled })
  if (!answer) return giveUp(work, key)
  checker.counts[enabled ? 'enabled' : 'disabled']++
  checker.acknowledged(key, enabled ? 'valid' : 'invalid', enabled ? 'being enabled' : 'being disabled', { confirmed: !enabled && isComplete(checker, answer) })
}

async function rotate(work: Work, key: Known): Promise<Known[]> {
  const { checker } = work
  if (key.state !== 'valid') return []
  checker.changing(key)
  const answer = await attempt(work, 'POST', `/v1/keys/${key.id}/rotate`, { overlap_seconds: 0 })
  if (!answer) {
    await giveUp(work, key)
    return []
  }
  checker.counts.rotated++
  checker.acknowledged(key, 'invalid', 'rotation', { ended: true, confirmed: isComplete(checker, answer) })
  return [checker.issued(answer.body.key.id, answer.body.plaintext_key, key.mecha)]
}

/** Whether a change that was not acknowledged took place, or still will, nobody knows: only a revocation ends that. */
async function giveUp(work: Work, key: Known): Promise<void> {
  work.checker.counts.unknownOutcomes++
  await revoke(work, key)
}

// ── Verdicts ──

/** Asks one replica in all its ways about everybody's keys, most of all about those that were changed last. */
export async function askReplica(work: Work, replica: Replica, over: AbortSignal): Promise<void> {
  while (!over.aborted) {
    const key = pickKey(work)
    if (key) await askAbout(work, replica, key, oneOf(WAYS, work.random))
    await sleep(work.random(ASK_PAUSE_MS))
  }
}

/** Asks a gateway with the SDK. */
export async function askGateway(work: Work, gateway: number, over: AbortSignal): Promise<void> {
  const { cluster, checker, random } = work
  while (!over.aborted) {
    const key = pickKey(work)
    if (key) {
      const asked = checker.asked(key, `gateway ${gateway}`, { isReplica: false })
      checker.answered(key, asked, outcomeOfGateway(await cluster.gateways[gateway]!.ask(key.plaintext)))
    }
    await sleep(random(ASK_PAUSE_MS))
  }
}

const WAYS = ['verify', 'verify', 'verify', 'authz', 'authz listener', 'introspect', 'batch'] as const
type Way = (typeof WAYS)[number]

export async function askAbout(work: Work, replica: Replica, key: Known, way: Way): Promise<void> {
  const { cluster, checker, credential } = work
  const keys = way === 'batch' ? [key, ...Array.from({ length: BATCH - 1 }, () => pickKey(work) ?? key)] : [key]
  const asked = keys.map((one) => checker.asked(one, `${way} on ${nameOf(cluster, replica)}`))
  const answer = await ask(replica, way, keys, credential)
  if (answer.status === 503 || answer.status === 0) return checker.answered(key, asked[0]!, { kind: 'unavailable', why: describe(answer) })
  const outcomes = outcomesOf(way, answer, keys.length)
  keys.forEach((one, i) => checker.answered(one, asked[i]!, outcomes[i]!))
}

function ask(replica: Replica, way: Way, keys: readonly Known[], credential: string): Promise<Answer> {
  const [{ plaintext }] = keys as [Known]
  const authorization = `Bearer ${credential}`
  switch (way) {
    case 'verify': return call(`${replica.url}/v1/verify`, 'POST', { authorization, ...JSON_TYPE }, JSON.stringify({ key: plaintext }))
    case 'batch': return call(`${replica.url}/v1/verify/batch`, 'POST', { authorization, ...JSON_TYPE }, JSON.stringify({ keys: keys.map((key) => ({ key: key.plaintext })) }))
    case 'introspect': return form(replica, '/v1/introspect', { token: plaintext }, { authorization })
    case 'authz': return call(`${replica.url}/v1/authz`, 'GET', { 'x-gateway-authorization': authorization, 'x-mecha-key': plaintext })
    case 'authz listener': return call(`${replica.authzUrl}/v1/authz`, 'GET', { 'x-mecha-key': plaintext })
  }
}

function outcomesOf(way: Way, answer: Answer, length: number): Outcome[] {
  const { status, body } = answer
  const isAuthz = way === 'authz' || way === 'authz listener'
  // A refusal of the key says `invalid_token`; one of the proxy's own credential does not.
  if (isAuthz && status === 200) return [{ kind: 'verdict', valid: true }]
  if (isAuthz && status === 401 && /The key|no such key/.test(body?.detail)) return [{ kind: 'verdict', valid: false, code: /disabled/.test(body.detail) ? 'disabled' : body.detail }]
  if (isAuthz || status !== 200) return Array.from({ length }, () => ({ kind: 'wrong', status, why: describe(answer) }))
  if (way === 'introspect') return [{ kind: 'verdict', valid: body.active }]
  return (way === 'batch' ? body.results : [body]).map(({ valid, code }: { valid: boolean; code?: string }) => ({ kind: 'verdict', valid, code }))
}

function outcomeOfGateway(outcome: string): Outcome {
  if (outcome === 'valid') return { kind: 'verdict', valid: true }
  if (['service_unreachable', 'service_unavailable', 'overloaded'].includes(outcome)) return { kind: 'unavailable', why: outcome }
  if (outcome === 'credential_refused' || outcome === 'closed') return { kind: 'wrong', status: 0, why: outcome }
  return { kind: 'verdict', valid: false, code: outcome }
}

function pickKey({ checker, random }: Pick<Work, 'checker' | 'random'>): Known | undefined {
  const { keys, recent } = checker
  const from = recent.length > 0 && random(2) === 0 ? recent : keys
  return from[random(from.length)]
}

// ── HTTP ──

interface Answer {
  readonly status: number
  readonly body: any
}

const JSON_TYPE = { 'content-type': 'application/json' }

/** A change, asked of a replica. `undefined`: what came of it is not known. */
async function attempt(work: Work, method: string, path: string, body: object): Promise<Answer | undefined> {
  const sentAt = performance.now()
  const replica = pickReplica(work)
  const wait = oneOf([undefined, undefined, 'wait=0', 'wait=6'], work.random)
  const answer = await send(work.cluster, replica, method, path, body, wait ? { prefer: wait } : {})
  if (answer.status >= 200 && answer.status < 300) return answer
  record(work.checker, answer, sentAt, `${method} ${path} on ${nameOf(work.cluster, replica)}`)
  await sleep(20)
  return undefined
}

function record(checker: Checker, answer: Answer, sentAt: number, what: string): void {
  if (answer.status === 503 || answer.status === 0) checker.unavailable(sentAt, performance.now(), `${what}: ${describe(answer)}`)
  else checker.wrong(answer.status, `${what}: ${describe(answer)}`)
}

export function send({ operator }: Pick<Cluster, 'operator'>, replica: Replica, method: string, path: string, body?: object, headers: Record<string, string> = {}): Promise<Answer> {
  return call(replica.url + path, method, { authorization: `Bearer ${operator}`, ...(body && JSON_TYPE), ...headers }, body && JSON.stringify(body))
}

function form(replica: Replica, path: string, fields: Record<string, string>, headers: Record<string, string> = {}): Promise<Answer> {
  return call(replica.url + path, 'POST', { 'content-type': 'application/x-www-form-urlencoded', ...headers }, new URLSearchParams(fields).toString())
}

/** Status 0: there was no answer. */
async function call(url: string, method: string, headers: Record<string, string>, body?: string): Promise<Answer> {
  try {
    const response = await fetch(url, { method, headers, signal: AbortSignal.timeout(PATIENCE_MS), ...(body !== undefined && { body }) })
    const text = await response.text()
    return { status: response.status, body: text.startsWith('{') ? JSON.parse(text) : undefined }
  } catch (error) {
    return { status: 0, body: { code: String((error as Error).cause ?? error) } }
  }
}

function describe({ status, body }: Answer): string {
  return `${status === 0 ? 'no answer' : status} ${body?.code ?? ''} ${body?.detail ?? ''}`.trim()
}

function isComplete({ counts }: Checker, { body }: Answer): boolean {
  const complete = isReceipt(body.propagation)
  counts[complete ? 'completeReceipts' : 'openReceipts']++
  return complete
}

/** Null where nobody could be asked any more: the change was acknowledged all the same. */
function isReceipt(propagation: { replicas: number; confirmed: number; complete?: boolean } | null | undefined): boolean {
  return propagation?.complete ?? (propagation != null && propagation.replicas > 0 && propagation.confirmed === propagation.replicas)
}

function pickReplica({ cluster: { replicas }, random }: Work): Replica {
  const fit = replicas.filter(({ isOut }) => !isOut)
  return oneOf(random(20) > 0 && fit.length > 0 ? fit : replicas, random)
}

function nameOf({ replicas }: Cluster, replica: Replica): string {
  return `replica ${replicas.indexOf(replica)}`
}
