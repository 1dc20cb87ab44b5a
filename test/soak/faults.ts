/**
 * What is done to the cluster while it works. Each fault ends when what it took away is there again; from then on the
 * service has {@link RECOVERY_MS} to be well.
 */

import { setTimeout as sleep } from 'node:timers/promises'
import { FAKETIME } from '../helpers/wall-clock.js'
import { oneOf, shuffle, type Random } from './chance.js'
import { BOUND_MS, DEAD_CONNECTIONS_MS, RECOVERY_MS, type Checker } from './checker.js'
import { LINKS, type Cluster, type Link, type Replica, type Suspendable } from './cluster.js'
import type { SoakDatabase } from './database.js'
import type { Gate } from './work.js'

export interface Scene {
  readonly cluster: Cluster
  readonly checker: Checker
  readonly gate: Gate
  readonly random: Random
}

interface Fault {
  readonly about: string
  readonly needsFaketime?: true
  readonly leavesDeadConnections?: true
  readonly happen: (scene: Scene) => Promise<unknown>
}

/** All is well when for so long nobody was told that nobody can say. */
const QUIET_MS = 500
/** Long enough that a replica which heard nothing meanwhile has to refuse. */
const LONG_MS = BOUND_MS * 1.5

export const FAULTS = {
  'kill-replica': {
    about: 'a replica is killed',
    happen: async (scene) => {
      const replica = pick(scene)
      await replica.kill()
      await replica.start()
    },
  },
  'stop-replica': { about: 'a replica is stopped for longer than the bound', happen: (scene) => pause(scene, 'stopped') },
  'suspend-replica': { about: "a replica's machine is suspended for longer than the bound, and its connections are forgotten", leavesDeadConnections: true, happen: (scene) => pause(scene, 'suspended') },
  'stop-gateway': { about: 'a gateway is stopped for longer than the bound', happen: (scene) => pauseGateway(scene, 'stopped') },
  'suspend-gateway': { about: "a gateway's machine is suspended for longer than the bound, and its connections are forgotten", happen: (scene) => pauseGateway(scene, 'suspended') },
  'restart-database': { about: 'the database is restarted', happen: ({ cluster }) => cluster.restartDatabase('in order') },
  'kill-database': { about: 'the database is killed', happen: ({ cluster }) => cluster.restartDatabase('SIGKILL') },
  'cut-connections': {
    about: 'all connections to the database are cut, and may come again',
    happen: async ({ cluster }) => {
      for (const wire of cluster.wires()) reset(wire)
    },
  },
  'cut-off': {
    about: 'nothing reaches the database for longer than the bound',
    happen: async ({ cluster }) => {
      for (const wire of cluster.wires()) wire.cut()
      await sleep(LONG_MS)
      for (const wire of cluster.wires()) wire.restore()
    },
  },
  'cut-off-one': {
    about: 'one replica does not reach the database for longer than the bound, by all its connections or some',
    happen: async (scene) => {
      const replica = pick(scene)
      const link = oneOf(['all', ...LINKS] as const, scene.random)
      const wires = scene.cluster.wires(link, [replica])
      await whileOut(replica, async () => {
        for (const wire of wires) wire.cut()
        await sleep(LONG_MS)
      })
      for (const wire of wires) wire.restore()
    },
  },
  silence: {
    about: 'connections go silent in mid-transaction, for longer than the bound',
    leavesDeadConnections: true,
    happen: async (scene) => {
      const replica = pick(scene)
      const wires = scene.random(2) === 0 ? scene.cluster.wires() : scene.cluster.wires('all', [replica])
      await scene.cluster.database.whileLocked(async () => {
        await sleep(200)
        for (const wire of wires) wire.silence()
      })
      await sleep(LONG_MS)
      for (const wire of wires) wire.restore()
    },
  },
  'half-open': {
    about: 'open connections go dead without a word, and new ones pass',
    leavesDeadConnections: true,
    happen: async (scene) => {
      const { cluster, random } = scene
      const wires = random(2) === 0 ? cluster.wires() : cluster.wires('all', [pick(scene)])
      for (const wire of wires) wire.failAfter(0, 'silent')
      for (const gateway of cluster.gateways) if (random(2) === 0) gateway.strand()
    },
  },
  'read-only': {
    about: 'the database takes no writes for longer than the bound',
    happen: async ({ cluster: { database } }) => {
      await database.setReadOnly(true)
      await sleep(LONG_MS)
      await database.setReadOnly(false)
    },
  },
  'feed-moves': {
    about: 'a copy is promoted, and the feeds lead to it while the pools stay on the old database',
    happen: (scene) =>
      failOver(scene, async (old, promoted) => {
        const { cluster, random } = scene
        lead(cluster.wires('feed'), promoted)
        // A moved address takes new connections to the new database; a pooler takes them to the one that it knows.
        if (random(2) === 0) for (const wire of cluster.wires('runtime')) wire.leadTo(promoted.urls.owner)
        // Where the old one is not fenced, it takes writes again as soon as the feeds have seen the new one.
        const isFenced = random(2) === 0
        await followers(promoted, cluster.replicas.length)
        return async () => {
          if (!isFenced) await old.setReadOnly(false)
          await sleep(LONG_MS)
        }
      }),
  },
  'pools-move': {
    about: 'a copy is promoted, and the pools lead to it while the feeds stay on the old database, which takes no writes',
    happen: (scene) =>
      failOver(scene, async (_old, promoted) => {
        lead(scene.cluster.wires('runtime'), promoted)
        return () => sleep(LONG_MS)
      }),
  },
  'all-move': {
    about: 'a copy is promoted, and the ways to it move one after the other, in any order',
    happen: (scene) =>
      failOver(scene, async (_old, promoted) => {
        const { cluster, random } = scene
        // A replica that sees only the old one cannot know: one way of each leads to the new one before anything changes there.
        const orders = cluster.replicas.map(({ wires }) => shuffle([wires.feed, wires.runtime], random))
        lead(orders.map(([first]) => first!), promoted)
        await followers(promoted, orders.filter(([first], i) => first === cluster.replicas[i]!.wires.feed).length)
        const moves = shuffle(orders.map(([, second]) => second!), random)
        return async () => {
          for (const wire of moves) {
            await sleep(random(1500))
            lead([wire], promoted)
          }
        }
      }),
  },
  'restore-in-place': {
    about: 'an older backup is restored into the live database, in one transaction, and what ended since is replayed',
    happen: async ({ cluster, checker, gate }) => {
      const { dump, checkpoint } = await gate.whileClosed(async () => ({ dump: await cluster.database.dump(), checkpoint: checker.checkpoint() }))
      await sleep(1500)
      await gate.whileClosed(async () => {
        const isRestored = checker.restoring(checkpoint)
        const trail = await cluster.endTrail()
        await cluster.database.restore(dump)
        // Nobody may answer from a database that went back, and memory ends within the bound.
        await sleep(BOUND_MS)
        await cluster.replay(trail)
        isRestored()
        cluster.followTrail()
      })
      await sleep(LONG_MS)
    },
  },
  'replica-clock': {
    about: "a replica's wall clock is stepped, and set right again",
    needsFaketime: true,
    happen: async (scene) => {
      const { clock } = pick(scene)
      clock.step(oneOf([12, -12, 3600, -3600], scene.random))
      await sleep(LONG_MS)
      clock.step(0)
      await sleep(LONG_MS)
    },
  },
  'database-clock': {
    about: "the database's wall clock is stepped and set right again, while a replica is cut off",
    needsFaketime: true,
    happen: async (scene) => {
      const { cluster, random } = scene
      const replica = pick(scene)
      await whileOut(replica, async () => {
        for (const wire of cluster.wires('all', [replica])) wire.cut()
        cluster.databaseClock.step(oneOf([12, -12, 3600, -3600], random))
        await sleep(LONG_MS)
      })
      for (const wire of cluster.wires('all', [replica])) wire.restore()
      cluster.databaseClock.step(0)
    },
  },
} satisfies Record<string, Fault>

export type FaultName = keyof typeof FAULTS
export const FAULT_NAMES = Object.keys(FAULTS) as FaultName[]

export interface WreckOptions {
  /** Which faults, in the order of the first round; all of them unless said otherwise. */
  readonly only?: readonly FaultName[] | undefined
  readonly over: AbortSignal
  readonly say: (line: string) => void
}

/** One fault after another, each of them once before any comes again, until it is over. */
export async function wreck(scene: Scene, { only, over, say }: WreckOptions): Promise<void> {
  const { cluster, checker, random } = scene
  const asked = only ?? shuffle([...FAULT_NAMES], random)
  const names = asked.filter((name) => FAKETIME !== undefined || !('needsFaketime' in FAULTS[name]))
  for (const name of asked) if (!names.includes(name)) say(`skipped: ${FAULTS[name].about} (libfaketime is not installed)`)
  for (let order = [...names]; !over.aborted; ) {
    if (order.length === 0) order = shuffle([...names], random)
    await sleep(300 + random(700), undefined, { signal: over }).catch(() => {})
    if (over.aborted) return
    const { about, happen, leavesDeadConnections }: Fault = FAULTS[order.shift()!]
    const end = checker.outage(about)
    const start = performance.now()
    await happen(scene)
    const happened = performance.now()
    await cluster.recovered()
    // What waited for the feed may have an answer only now. Dead connections are found out one by one: see below.
    while (!leavesDeadConnections && performance.now() - checker.lastUnavailableAt < QUIET_MS && performance.now() - happened < 2 * RECOVERY_MS) await sleep(20)
    const tookMs = performance.now() - happened
    checker.recovered(about, tookMs)
    end(leavesDeadConnections ? DEAD_CONNECTIONS_MS : 0)
    say(`${about}: ${Math.round(happened - start)} ms, and all well ${Math.round(tookMs)} ms later`)
  }
}

/**
 * A copy is promoted that has all that was acknowledged: nothing is changed meanwhile, and the old one takes no writes from
 * before the copy is complete. Changes are asked of the new one from then on. `move` says what moves before they are, and
 * returns what goes on while they are. In the end everything leads to the new one, and the old one is gone.
 */
async function failOver(scene: Scene, move: (old: SoakDatabase, promoted: SoakDatabase) => Promise<() => Promise<unknown>>): Promise<void> {
  const { cluster, gate, random } = scene
  const old = cluster.database
  const standby = await old.startStandby()
  const { promoted, goOn } = await gate.whileClosed(async () => {
    await old.setReadOnly(true)
    const promoted = await standby.promote()
    cluster.database = promoted
    lead(cluster.wires('control'), promoted)
    cluster.moveTrail()
    return { promoted, goOn: await move(old, promoted) }
  })
  await goOn()
  for (const wire of cluster.wires()) wire.leadTo(promoted.urls.owner)
  // Whoever still follows the old one keeps its connections for as long as it lives.
  if (random(2) === 0) for (const wire of cluster.wires()) reset(wire)
  await old.stop(oneOf(['in order', 'SIGKILL'], random))
  await old.remove()
}

/** Resolves when the feeds of so many replicas follow a database: until then, those see only the old one. */
async function followers(database: SoakDatabase, count: number): Promise<void> {
  const end = performance.now() + RECOVERY_MS
  while ((await database.query("SELECT 1 FROM pg_stat_activity WHERE application_name LIKE 'mecha-keys feed%' AND state_change > backend_start AND query NOT LIKE 'LISTEN%'")).length < count) {
    if (performance.now() > end) throw new Error('the feeds do not find the promoted database')
    await sleep(20)
  }
}

async function pause(scene: Scene, as: 'stopped' | 'suspended'): Promise<void> {
  const replica = pick(scene)
  await whileOut(replica, async () => {
    replica.stop()
    if (as === 'suspended') for (const wire of scene.cluster.wires('all', [replica])) wire.failAfter(0, 'silent')
    await sleep(LONG_MS)
  })
  replica.continue(as)
}

async function pauseGateway({ cluster, random }: Scene, as: 'stopped' | 'suspended'): Promise<void> {
  const gateway = oneOf(cluster.gateways, random)
  const stopped: Suspendable = gateway
  stopped.stop()
  if (as === 'suspended') gateway.strand()
  await sleep(LONG_MS)
  stopped.continue(as)
  await sleep(BOUND_MS)
}

async function whileOut(replica: Replica, act: () => Promise<unknown>): Promise<void> {
  replica.isOut = true
  await act()
  replica.isOut = false
}

function lead(wires: ReturnType<Cluster['wires']>, to: SoakDatabase): void {
  for (const wire of wires) {
    wire.leadTo(to.urls.owner)
    reset(wire)
  }
}

function reset(wire: Replica['wires'][Link]): void {
  wire.cut()
  wire.restore()
}

function pick({ cluster, random }: Scene): Replica {
  return oneOf(cluster.replicas, random)
}
