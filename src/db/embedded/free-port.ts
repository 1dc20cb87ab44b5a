/**
 * A port of the loopback for a program that has to be told its port beforehand. It stays this process's own until that ends.
 *
 * The system would name a free port too, and give the same one to the next who asks for any, or to a connection, before the
 * program listens. So ports are taken from below those that systems give away (from 32768 on with Linux, from 49152 on
 * elsewhere). Among processes that ask here, a UDP socket of the same number reserves the port: it is in no TCP server's way,
 * and the system closes it with the process.
 */

import { randomInt } from 'node:crypto'
import { createSocket } from 'node:dgram'
import { once } from 'node:events'
import { createServer } from 'node:net'

const [FIRST, LAST] = [20_000, 32_767]

export async function freePort(): Promise<number> {
  for (;;) {
    const port = randomInt(FIRST, LAST + 1)
    if ((await reserve(port)) && (await isFree(port))) return port
  }
}

async function reserve(port: number): Promise<boolean> {
  const socket = createSocket('udp4')
  socket.bind({ port, address: '127.0.0.1', exclusive: true })
  if (!(await succeeds(once(socket, 'listening')))) return false
  socket.unref()
  return true
}

async function isFree(port: number): Promise<boolean> {
  const server = createServer().listen({ port, host: '127.0.0.1', exclusive: true })
  if (!(await succeeds(once(server, 'listening')))) return false
  server.close()
  await once(server, 'close')
  return true
}

/** False where the port is in use, or forbidden. */
function succeeds(listening: Promise<unknown>): Promise<boolean> {
  return listening.then(() => true, (error: NodeJS.ErrnoException) => {
    if (error.code === 'EADDRINUSE' || error.code === 'EACCES') return false
    throw error
  })
}
