/** A wire between the service and its database, which a test can cut, make dead, hold up, or lead elsewhere. */

import { once } from 'node:events'
import { connect, createServer, type AddressInfo, type Socket } from 'node:net'
import type { Test } from 'tap'

export interface Wire {
  /** A database's URL by way of this wire. */
  through(url: string): string
  /** Ends all connections and takes no new ones. */
  cut(): void
  /** Connections stay, and nothing comes through them any more, ever. */
  silence(): void
  /** New connections pass. Those that were silenced stay so, as when a firewall or a server lost them. */
  restore(): void
  /** Each connection that is open now lets so many pieces of answers through, and is then silent, or cut. New ones pass. */
  failAfter(pieces: number, how: 'silent' | 'cut'): void
  /** Keeps back what the database answers. Resolves when there is something that was kept back. */
  hold(): Promise<void>
  /** Lets go of what was kept back. */
  release(): void
  /** Where new connections go from now on. */
  leadTo(url: string): void
}

export async function layWire(t: Pick<Test, 'teardown'>, to: string): Promise<Wire> {
  let { hostname, port } = new URL(to)
  const open = new Set<Socket>()
  const fars = new Set<Socket>()
  let state: 'whole' | 'cut' | 'silent' = 'whole'
  /** What each connection from the database may still let through, and what it does then. */
  const failing = new Map<Socket, { left: number; readonly how: 'silent' | 'cut' }>()
  let held: (() => void)[] | undefined
  let onHeld = () => {}
  const proxy = createServer((near) => {
    if (state === 'cut') return void near.destroy()
    const far = connect(Number(port), hostname)
    fars.add(far)
    let isDead = false
    for (const [from, into] of [[near, far], [far, near]] as const) {
      open.add(from)
      from.on('error', () => {}).on('close', () => (open.delete(from), failing.delete(from), fars.delete(from), into.destroy()))
      from.on('data', (bytes) => {
        isDead ||= state === 'silent'
        const failure = failing.get(from)
        if (failure && failure.left-- <= 0) {
          if (failure.how === 'cut') from.destroy()
          isDead = true
        }
        if (isDead) return
        if (!held || from === near) return void into.write(bytes)
        held.push(() => into.write(bytes))
        onHeld()
      })
    }
  }).listen(0, '127.0.0.1')
  await once(proxy, 'listening')
  const hangUp = () => open.forEach((socket) => socket.destroy())
  t.teardown(() => (hangUp(), proxy.close()))
  return {
    through: (url) => Object.assign(new URL(url), { host: `127.0.0.1:${(proxy.address() as AddressInfo).port}` }).href,
    cut: () => ((state = 'cut'), hangUp()),
    silence: () => void (state = 'silent'),
    restore: () => void (state = 'whole'),
    failAfter: (pieces, how) => fars.forEach((far) => failing.set(far, { left: pieces, how })),
    hold: () => ((held = []), new Promise((resolve) => (onHeld = resolve))),
    release() {
      held?.forEach((send) => send())
      held = undefined
    },
    leadTo: (url) => void ({ hostname, port } = new URL(url)),
  }
}
