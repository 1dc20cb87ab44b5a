/** The planes' database logins: each has a pool of its own, which metrics and readiness watch. */

import type { FastifyInstance } from 'fastify'
import type { Kysely } from 'kysely'
import { databaseSetting, preparesStatements, type DatabaseUrl, type Settings } from '../config.js'
import { missingRootSecret } from '../control/keys/root-secrets.js'
import type { Roots } from '../credentials/roots.js'
import { hashVersion } from '../db/hash-version.js'
import type { Plane } from '../db/logins.js'
import { openPool, type OpenPool } from '../db/pool.js'
import { databaseMistake, databaseTrouble } from '../db/readiness.js'
import type { Database } from '../db/tables.js'
import type { Metrics } from '../http/metrics.js'
import { statementWork, type Tracing } from '../tracing/tracing.js'
import type { Checks } from './checks.js'
import { untilRight } from './health.js'

export interface DatabasePoolsDeps {
  readonly app: FastifyInstance
  readonly config: Settings
  readonly roots: Roots
  readonly metrics: Metrics
  readonly tracing: Tracing | undefined
  readonly checks: Checks
}

export class DatabasePools {
  readonly #pools = new Map<Plane, OpenPool>()
  #hashVersion: ReturnType<typeof hashVersion> | undefined

  constructor(private readonly deps: DatabasePoolsDeps) {
    deps.metrics.watch('mecha_keys_database_connections', 'Connections of a plane, in use (active) and not (idle)',
      () => [...this.#pools].flatMap(([plane, pool]) => (['active', 'idle'] as const).map((state) => ({ labels: { plane, state }, value: pool.connections()[state] }))), ['plane', 'state'])
    deps.metrics.watch('mecha_keys_database_waiting', 'Statements that wait for a connection',
      () => [...this.#pools].map(([plane, pool]) => ({ labels: { plane }, value: pool.connections().waiting })), ['plane'])
  }

  /** Which version of hash input to write, as the database says. Any plane's database says the same. */
  hashVersion(): ReturnType<ReturnType<typeof hashVersion>> {
    return this.#hashVersion!()
  }

  /** Opens a plane's login, by the first of these settings that is set. The pool is closed after everything that uses it. */
  open(plane: Plane, ...settings: [DatabaseUrl, ...DatabaseUrl[]]): OpenPool {
    const { app, config, roots, metrics, tracing, checks } = this.deps
    const setting = databaseSetting(config, ...settings)
    const pool = openPool({
      url: config[setting]!,
      size: config.DATABASE_POOL_SIZE,
      timeoutMs: config.DATABASE_TIMEOUT * 1000,
      name: `mecha-keys ${plane}`,
      prepares: preparesStatements(config),
      onQuery(statement) {
        metrics.queries.inc({ plane })
        tracing?.did(statementWork(statement, plane))
      },
      onError: (error) => app.log.warn({ err: error }, 'an idle database connection was lost'),
    })
    this.#pools.set(plane, pool)
    this.#hashVersion ??= hashVersion(pool.db)
    const login = { db: pool.db, plane, setting, isAlone: config.PLANES === plane }
    checks.ofReadiness[`database_${plane}`] = () => databaseTrouble(login)
    checks.ofReadiness['root_secrets'] ??= untilRight(() => rootSecretsTrouble(pool.db, roots), app.log)
    checks.ofSettings.push(() => databaseMistake(login))
    app.addHook('onClose', () => pool.db.destroy())
    return pool
  }
}

/** A lost root secret does not end the process: the control plane is needed to end what was made under it. */
async function rootSecretsTrouble(db: Kysely<Database>, roots: Roots): Promise<string | undefined> {
  const missing = await missingRootSecret(db, roots)
  return missing && `ROOT_SECRETS lacks ${missing}, which living keys or signing keys need: add it (mecha-keys root-secrets status), or end them`
}
