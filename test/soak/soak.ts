/** Random work on three replicas while what they stand on is taken away, and what the record says of it in the end. */

import { setTimeout as sleep } from 'node:timers/promises'
import { parsePublicId } from '../../src/key/id.js'
import { Checker, type Known } from './checker.js'
import { BOUND_MS, REPLICAS, startCluster, type Cluster } from './cluster.js'

export interface SoakOptions {
  readonly seconds: number
  /** Of what is done in which order; how it falls together is up to the machine. */
  readonly seed: number
  readonly say: (line: string) => void
}

export interface SoakReport {
  readonly counts: Checker['counts']
  readonly complaints: readonly string[]
  readonly isClean: boolean
}

const WORKERS = 6
const MECHAS = 20
/** Longest wait for an answer: longer than the service lets anything take. */
const PATIENCE_MS = 15_000

type Random = (below: number) => number

export async function soak({ seconds, seed, say }: SoakOptions): Promise<SoakReport> {
  const cluster = await startCluster()
  const checker = new Checker()
  try {
    const { body } = await send(cluster, 0, 'POST', '/v1/gateways', { name: 'soak' })
    const gateway = body.plaintext_key as string
    const over = AbortSignal.timeout(seconds * 1000)
    const working = Promise.all(Array.from({ length: WORKERS }, (_, i) => work({ cluster, checker, gateway, random: randomOf(seed + i) }, over)))
    // Awaited below; until then, a worker that fails must not end the process over the cluster's head.
    working.catch(() => {})
    await wreck(cluster, checker, randomOf(seed + WORKERS), over, say)
    await working
    await cluster.recovered()
    await examine({ cluster, checker, gateway, random: randomOf(0) })
  } finally {
    await cluster.end()
  }
  return { counts: checker.counts, complaints: checker.complaints, isClean: checker.isClean }
}

interface Worker {
  readonly cluster: Cluster
  readonly checker: Checker
  readonly gateway: string
  readonly random: Random
}

// ── What is done ──

/** A worker changes only keys of its own, so that it knows in what order that happened; it verifies everybody's. */
async function work(worker: Worker, over: AbortSignal): Promise<void> {
  const { random, checker } = worker
  const own: Known[] = []
  while (!over.aborted) {
    const living = own.filter(({ ended }) => !ended)
    const key = living[random(living.length)]
    const act = random(100)
    if (!key || (act < 8 && living.length < 40)) own.push(...(await issue(worker)))
    else if (act < 12) await revoke(worker, key)
    else if (act < 15) own.push(...(await rotate(worker, key)))
    else if (act < 20) await setEnabled(worker, key, key.state !== 'valid')
    else if (checker.keys.length > 0) await verify(worker, checker.keys[random(checker.keys.length)]!, random(REPLICAS))
  }
}

async function issue({ cluster, checker, random }: Worker): Promise<Known[]> {
  const mecha = `m${random(MECHAS)}^soak`
  const answer = await attempt(cluster, checker, random, 'POST', '/v1/keys', { mecha })
  return answer?.status === 201 ? [checker.issued(answer.body.key.id, answer.body.plaintext_key, mecha)] : []
}

/** Revoking is repeated until it is acknowledged: it is idempotent and final. */
async function revoke({ cluster, checker, random }: Worker, key: Known): Promise<void> {
  checker.changing(key)
  key.ended = true
  for (;;) {
    const answer = await attempt(cluster, checker, random, 'POST', `/v1/keys/${key.id}/revoke`, { reason: 'soak' })
    if (answer?.status !== 200) continue
    checker.counts.revoked++
    return checker.acknowledged(key, 'invalid', { ended: true, confirmed: isConfirmed(answer) })
  }
}

async function setEnabled(worker: Worker, key: Known, enabled: boolean): Promise<void> {
  const { cluster, checker, random } = worker
  checker.changing(key)
  const answer = await attempt(cluster, checker, random, 'PATCH', `/v1/keys/${key.id}`, { enabled })
  if (answer?.status !== 200) return giveUp(worker, key)
  checker.counts[enabled ? 'enabled' : 'disabled']++
  checker.acknowledged(key, enabled ? 'valid' : 'invalid', { confirmed: !enabled && isConfirmed(answer) })
}

async function rotate(worker: Worker, key: Known): Promise<Known[]> {
  const { cluster, checker, random } = worker
  if (key.state !== 'valid') return []
  checker.changing(key)
  const answer = await attempt(cluster, checker, random, 'POST', `/v1/keys/${key.id}/rotate`, { overlap_seconds: 0 })
  if (answer?.status !== 201) {
    await giveUp(worker, key)
    return []
  }
  checker.counts.rotated++
  checker.acknowledged(key, 'invalid', { ended: true, confirmed: isConfirmed(answer) })
  return [checker.issued(answer.body.key.id, answer.body.plaintext_key, key.mecha)]
}

/** Whether a change that was not acknowledged took place, or still will, nobody knows: only a revocation ends that. */
async function giveUp(worker: Worker, key: Known): Promise<void> {
  worker.checker.counts.unknownOutcomes++
  await revoke(worker, key)
}

async function verify({ cluster, checker, gateway }: Worker, key: Known, replica: number): Promise<void> {
  const before = checker.snapshot(key)
  const sentAt = performance.now()
  const answer = await send(cluster, replica, 'POST', '/v1/verify', { key: key.plaintext }, gateway)
  const answeredAt = performance.now()
  if (answer.status !== 200) return checker.unavailable(sentAt, answeredAt, `verify on replica ${replica} answered ${answer.status} ${answer.body?.code ?? ''}`)
  checker.judge(key, before, { sentAt, answeredAt, valid: answer.body.valid, code: answer.body.code })
}

// ── What is taken away ──

async function wreck(cluster: Cluster, checker: Checker, random: Random, over: AbortSignal, say: SoakOptions['say']): Promise<void> {
  const replica = () => random(REPLICAS)
  const wrecks: Record<string, () => Promise<unknown>> = {
    'a replica is killed': () => {
      const i = replica()
      return cluster.killReplica(i).then(() => cluster.startReplica(i))
    },
    'the database is restarted': () => cluster.restartDatabase('in order'),
    'all connections are cut, and may come again': async () => {
      cluster.cutConnections()
      cluster.restoreConnections()
    },
    'the database is killed': () => cluster.restartDatabase('SIGKILL'),
    'a replica is stopped for longer than the bound': async () => {
      const i = replica()
      cluster.stopReplica(i)
      await sleep(BOUND_MS * 1.5)
      cluster.continueReplica(i)
    },
    'nothing reaches the database for longer than the bound': async () => {
      cluster.cutConnections()
      await sleep(BOUND_MS * 1.5)
      cluster.restoreConnections()
    },
  }
  const order = shuffle(Object.entries(wrecks), random)
  for (let i = 0; !over.aborted; i++) {
    const [what, happen] = order[i % order.length]!
    await sleep(500 + random(1500), undefined, { signal: over }).catch(() => {})
    if (over.aborted) return
    const end = checker.outage(what)
    const start = performance.now()
    await happen()
    await cluster.recovered()
    end()
    say(`${what}: all well after ${Math.round(performance.now() - start)} ms`)
  }
}

// ── What is left in the end ──

/** Every acknowledged key and change is there, in the table, in the audit trail, and on every replica. */
async function examine(worker: Worker): Promise<void> {
  const { cluster, checker } = worker
  await sleep(BOUND_MS)
  const rows = await cluster.query(`SELECT id::text, revoked_at IS NOT NULL AS revoked, enabled, expires_at <= clock_timestamp() AS expired FROM keys WHERE kind = 'mecha'`)
  const events = await cluster.query(`SELECT key_id::text AS id, array_agg(type) AS types FROM events GROUP BY key_id`)
  const byId = new Map(rows.map((row) => [row['id'], row]))
  const eventsById = new Map(events.map((row) => [row['id'], row['types'] as string[]]))
  for (const key of checker.keys) {
    const id = parsePublicId('mecha', key.id)!
    const row = byId.get(id)
    const types = eventsById.get(id) ?? []
    if (!row) checker.lost('issuesLost', `${key.id} was issued and is not in the table`)
    else if (key.state === 'invalid' && !row['revoked'] && !row['expired'] && row['enabled']) checker.lost('changesLost', `${key.id} was ended and is not ended in the table`)
    if (!types.includes('key.issued')) checker.lost('eventsMissing', `${key.id} was issued and no event says so`)
    if (row?.['revoked'] && !types.includes('key.revoked')) checker.lost('eventsMissing', `${key.id} was revoked and no event says so`)
    for (let replica = 0; replica < REPLICAS; replica++) await verify(worker, key, replica)
  }
}

// ── Asking ──

interface Answer {
  readonly status: number
  readonly body: any
}

/** A change, asked of any replica. `undefined`: what came of it is not known. */
async function attempt(cluster: Cluster, checker: Checker, random: Random, method: string, path: string, body: object): Promise<Answer | undefined> {
  const sentAt = performance.now()
  const replica = random(REPLICAS)
  const answer = await send(cluster, replica, method, path, body)
  if (answer.status >= 200 && answer.status < 300) return answer
  checker.unavailable(sentAt, performance.now(), `${method} ${path} on replica ${replica} answered ${answer.status} ${answer.body?.code ?? ''}`)
  return undefined
}

/** Status 0: there was no answer. */
async function send({ urls, operator }: Cluster, replica: number, method: string, path: string, body: object, credential = operator): Promise<Answer> {
  try {
    const response = await fetch(urls[replica]! + path, {
      method,
      headers: { authorization: `Bearer ${credential}`, 'content-type': 'application/json' },
      body: JSON.stringify(body),
      signal: AbortSignal.timeout(PATIENCE_MS),
    })
    return { status: response.status, body: await response.json() }
  } catch (error) {
    return { status: 0, body: { code: String((error as Error).cause ?? error) } }
  }
}

function isConfirmed({ body }: Answer): boolean {
  // Null where nobody could be asked any more: the change was acknowledged all the same.
  const propagation = body.propagation as { replicas: number; confirmed: number } | null
  return propagation !== null && propagation.replicas > 0 && propagation.confirmed === propagation.replicas
}

// ── Chance ──

/** Mulberry32: the same numbers for the same seed. */
function randomOf(seed: number): Random {
  let state = seed >>> 0
  return (below) => {
    state = (state + 0x6d2b79f5) >>> 0
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state)
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed
    return Math.floor((((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32) * below)
  }
}

function shuffle<T>(items: T[], random: Random): T[] {
  for (let i = items.length - 1; i > 0; i--) {
    const j = random(i + 1)
    ;[items[i], items[j]] = [items[j]!, items[i]!]
  }
  return items
}
