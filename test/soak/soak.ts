/** Random work on replicas and gateways while what they stand on is taken away, and what the record says of it in the end. */

import { setTimeout as sleep } from 'node:timers/promises'
import { parsePublicId } from '../../src/credentials/id.js'
import { randomOf } from './chance.js'
import { BOUND_MS, Checker } from './checker.js'
import { GATEWAYS, startCluster } from './cluster.js'
import { wreck, type FaultName } from './faults.js'
import { askAbout, askGateway, askReplica, change, Gate, send, type Work } from './work.js'

export interface SoakOptions {
  readonly seconds: number
  /** Of what is done in which order; how it falls together is up to the machine. */
  readonly seed: number
  /** Which faults, in the order of the first round; all of them unless said otherwise. */
  readonly only?: readonly FaultName[] | undefined
  readonly say: (line: string) => void
}

export interface SoakReport {
  readonly counts: Checker['counts']
  readonly complaints: readonly string[]
  readonly isClean: boolean
}

const WORKERS = 6
/** Who asks each replica at once. */
const ASKERS = 3

export async function soak({ seconds, seed, only, say }: SoakOptions): Promise<SoakReport> {
  const cluster = await startCluster()
  const checker = new Checker()
  let isOver = false
  try {
    const { status, body } = await send(cluster, cluster.replicas[0]!, 'POST', '/v1/gateways', { name: 'soak' })
    if (status !== 201) throw new Error(`creating a gateway answered ${status}`)
    const credential = body.plaintext_key as string
    await cluster.startGateways(credential)
    let seeds = seed
    const work = (): Work => ({ cluster, checker, gate, credential, random: randomOf(seeds++) })
    const gate = new Gate()
    const over = new AbortController()
    // One controller and no AbortSignal.any: what that makes can be collected as garbage while it is waited for.
    const timer = setTimeout(() => over.abort(), seconds * 1000)
    const wrecking = wreck(work(), { only, over: over.signal, say })
    const working = Promise.all([
      ...Array.from({ length: WORKERS }, (_, i) => change(work(), i, over.signal)),
      ...cluster.replicas.flatMap((replica) => Array.from({ length: ASKERS }, () => askReplica(work(), replica, over.signal))),
      ...Array.from({ length: GATEWAYS }, (_, i) => askGateway(work(), i, over.signal)),
    ])
    // Awaited below; until then, a worker that fails must not end the process over the cluster's head.
    working.catch(() => {})
    await wrecking.finally(() => (clearTimeout(timer), over.abort()))
    await working
    await cluster.recovered()
    await examine(work())
    isOver = true
  } finally {
    const isKept = !isOver || !checker.isClean
    await cluster.end({ isKept })
    if (isKept) say(`the replicas' logs are in ${cluster.folder}`)
  }
  return { counts: checker.counts, complaints: checker.complaints, isClean: checker.isClean }
}

/** Every acknowledged key and change is there in the end: in the table, in the audit trail, and on every replica. */
async function examine(work: Work): Promise<void> {
  const { cluster, checker } = work
  await sleep(BOUND_MS)
  const rows = await cluster.database.query(`SELECT id::text, revoked_at IS NOT NULL AS revoked, enabled, expires_at <= clock_timestamp() AS expired FROM keys WHERE kind = 'mecha'`)
  const events = await cluster.database.query(`SELECT key_id::text AS id, array_agg(type) AS types FROM events GROUP BY key_id`)
  const byId = new Map(rows.map((row) => [row['id'], row]))
  const eventsById = new Map(events.map((row) => [row['id'], row['types'] as string[]]))
  for (const key of checker.keys) {
    const id = parsePublicId('mecha', key.id)!
    const row = byId.get(id)
    const types = eventsById.get(id) ?? []
    if (!row && !key.gone) checker.lost('issuesLost', `${key.id} was issued and is not in the table`)
    else if (row && key.state === 'invalid' && !row['revoked'] && !row['expired'] && row['enabled']) checker.lost('changesLost', `${key.id} was ended and is not ended in the table`)
    if (!types.includes('key.issued') && !key.gone) checker.lost('eventsMissing', `${key.id} was issued and no event says so`)
    if (row?.['revoked'] && !types.includes('key.revoked')) checker.lost('eventsMissing', `${key.id} was revoked and no event says so`)
    for (const replica of cluster.replicas) await askAbout(work, replica, key, 'verify')
  }
}
