/** Listening, signals, draining, the end. */

import { once } from 'node:events'
import { lstat, unlink } from 'node:fs/promises'
import { connect } from 'node:net'
import { setTimeout as sleep } from 'node:timers/promises'
import type { FastifyInstance } from 'fastify'
import { buildApp, type AppDeps } from './compose.js'
import { suspectNames, type Environment, type Settings } from '../config.js'
import { endOnSignals } from './shutdown.js'
import { ConfigError } from '../errors.js'

export interface ServeOptions extends AppDeps {
  /** Searched for names that look like settings of mecha-keys and are none. */
  readonly environment: Environment
  /** Called when requests are welcome. */
  readonly onListening?: (url: string) => Promise<void>
  /** Called after the last request has been answered. */
  readonly onClosed?: () => Promise<void>
}

/**
 * For what follows the last connection: to write the times of last use, and to take leave of the database. It and the
 * default `SHUTDOWN_TIMEOUT` fit into the ten seconds that Docker waits.
 */
export const LAST_STEPS_MS = 1500

/** Serves until a signal: SIGTERM and SIGINT drain and end with 0, a second one ends at once. */
export async function serve(config: Settings, options: ServeOptions): Promise<void> {
  const { app, authz, startDraining } = await buildApp(config, { processMetrics: true, refusesMistakes: true, ...options })
  endOnSignals({
    log: app.log,
    withinMs: (config.DRAIN_DELAY + config.SHUTDOWN_TIMEOUT) * 1000 + LAST_STEPS_MS,
    async finish({ isError }) {
      startDraining()
      if (!isError) await sleep(config.DRAIN_DELAY * 1000)
      await app.close()
      await options.onClosed?.()
    },
  })
  for (const { name, meant } of suspectNames(options.environment))
    app.log.warn(`${name} is no setting of mecha-keys${meant ? `: did you mean ${meant}?` : ''}`)
  try {
    const url = await app.listen({ host: config.HOST, port: config.PORT }).catch((error: NodeJS.ErrnoException) => {
      throw new ConfigError(`PORT ${config.PORT} on HOST ${config.HOST} cannot be listened on (${error.code})`)
    })
    if (authz) await listenForProxies(authz, config)
    await options.onListening?.(url)
  } catch (error) {
    await app.close()
    throw error
  }
}

/** Listens on `AUTHZ_LISTEN`, and says in the log what that means. */
async function listenForProxies(authz: FastifyInstance, { AUTHZ_LISTEN: address, AUTHZ_ORG: org }: Settings): Promise<void> {
  if (address && 'path' in address) await removeAbandoned(address.path)
  const keys = org ? `the keys of ${org}` : 'the keys of every organization'
  const listenTextResolver = (where: string) => `whoever reaches ${where} may ask /v1/authz about ${keys}, without a credential`
  await authz.listen({ ...address!, listenTextResolver }).catch((error: NodeJS.ErrnoException) => {
    throw new ConfigError(`AUTHZ_LISTEN cannot be listened on (${error.code})`)
  })
}

/** Removes a socket that a killed process left behind. Nobody listens on one that refuses; any other error proves nothing. */
async function removeAbandoned(path: string): Promise<void> {
  if (!(await lstat(path).then((found) => found.isSocket(), () => false))) return
  const socket = connect(path)
  const isAbandoned = await once(socket, 'connect').then(() => false, (error: NodeJS.ErrnoException) => error.code === 'ECONNREFUSED')
  socket.destroy()
  if (isAbandoned) await unlink(path)
}
