/** One pool per plane, with a bound on everything that could wait. */

import { Kysely, PostgresDialect, PostgresDriver, sql, type DatabaseConnection, type LogEvent, type PostgresDialectConfig, type RawBuilder } from 'kysely'
import { Client, Pool, type ClientBase, type PoolClient } from 'pg'
import type { Database } from './tables.js'

/** A statement that was sent. Its parameters are none of anybody's business: they may be hashes. */
export type Statement = Pick<LogEvent, 'level' | 'queryDurationMillis'> & { readonly query: Pick<LogEvent['query'], 'sql'> }

export interface PoolOptions {
  readonly url: string
  /** Most connections open at once. */
  readonly size: number
  /** Longest that a connection attempt, a statement or an idle transaction may take, in milliseconds. */
  readonly timeoutMs: number
  /** Shown in `pg_stat_activity`. */
  readonly name: string
  /** Whether statements that are marked with {@link preparedAs} are planned once for each connection. */
  readonly prepares?: boolean
  /** Called for every statement sent, when it was answered or failed. */
  readonly onQuery?: (statement: Statement) => void
  /** Called when an idle connection breaks; the pool replaces it. */
  readonly onError?: (error: Error) => void
}

/** The time-outs that the server keeps, all of the same length. `ensureLogin` sets them as well. */
export const SERVER_TIMEOUTS = ['statement_timeout', 'lock_timeout', 'idle_in_transaction_session_timeout'] as const

/** What is acknowledged outlives a crash, whatever the server's default is. `ensureLogin` sets it as well. */
export const DURABLE_COMMIT = { name: 'synchronous_commit', value: 'on' } as const

/** Not a start-up parameter: a pooler refuses those that it does not know. */
export async function commitDurably(client: Pick<ClientBase, 'query'>): Promise<void> {
  await client.query(`SET ${DURABLE_COMMIT.name} = ${DURABLE_COMMIT.value}`)
}

/** A database handle over a pool, and a way to be rid of the connections that the pool has. */
export interface OpenPool {
  readonly db: Kysely<Database>
  /** From now on nothing is asked on a connection that is open at this moment: it may lead to another server than a new one. */
  readonly renew: () => void
  /** Connections in use and not in use, and how many statements wait for one. */
  readonly connections: () => { readonly active: number; readonly idle: number; readonly waiting: number }
}

/** A database handle over a pool of its own. `destroy()` ends it. */
export function openDatabase(options: PoolOptions): Kysely<Database> {
  return openPool(options).db
}

export function openPool(options: PoolOptions): OpenPool {
  const { timeoutMs, onQuery } = options
  /** Connections that were opened before they were to be renewed, by when that was. */
  const openedIn = new WeakMap<PoolClient, number>()
  let generation = 0
  const pool = new Pool({
    Client: options.prepares ? PreparingClient : ImpatientClient,
    connectionString: options.url,
    max: options.size,
    application_name: options.name,
    connectionTimeoutMillis: timeoutMs,
    ...Object.fromEntries(SERVER_TIMEOUTS.map((name) => [name, timeoutMs])),
    // A server that no longer answers cannot keep its own time-outs: the client has one too, a little later.
    query_timeout: timeoutMs + 1000,
    keepAlive: true,
    onConnect: commitDurably,
  })
  pool.on('error', (error) => options.onError?.(error))
  pool.on('connect', (client) => {
    openedIn.set(client, generation)
    // The pool listens to idle connections alone. One that breaks in use fails its statement, and the next one on it:
    // that is how it is told, and nobody listening would end the process.
    client.on('error', () => {})
  })

  async function connect(): Promise<PoolClient> {
    for (;;) {
      const client = await pool.connect()
      if (openedIn.get(client) === generation) return client
      client.release(true)
    }
  }

  const db = new Kysely<Database>({
    dialect: new TruthfulDialect({ pool: { connect, end: () => pool.end() } }),
    ...(onQuery && { log: onQuery }),
  })
  return {
    db,
    renew: () => void generation++,
    connections: () => ({ active: pool.totalCount - pool.idleCount, idle: pool.idleCount, waiting: pool.waitingCount }),
  }
}

/**
 * A connection that let a statement time out is given up: it may be dead without knowing, the statement may still run
 * on it, and a transaction may still be open. So is one that cannot roll back. The pool would hand it out again.
 */
class ImpatientClient extends Client {
  override query(...args: unknown[]): any {
    const result = (super.query as (...args: unknown[]) => Promise<unknown> | undefined)(...args)
    result?.catch((error: Error) => (error.message === 'Query read timeout' || args[0] === 'rollback' ? this.end() : undefined))
    return result
  }
}

/** Ends a statement that is sent so often that to plan it is much of its cost. One name is one text. */
export function preparedAs(name: string): RawBuilder<unknown> {
  return sql.raw(preparedMark(name))
}

/** The same for a statement whose text is made once. */
export function preparedMark(name: string): string {
  return `/* prepared ${name} */`
}
const PREPARED = /\/\* prepared (\w+) \*\/$/

class PreparingClient extends ImpatientClient {
  override query(...args: unknown[]): any {
    const [text, values] = args
    const name = typeof text === 'string' ? PREPARED.exec(text)?.[1] : undefined
    return name === undefined ? super.query(...args) : super.query({ name, text, values })
  }
}

/**
 * Tells why a transaction failed. Kysely rolls back then, and on a connection that is gone that fails as well: it would
 * throw the second error, which says nothing of the first. The server rolls back by itself when a connection ends.
 */
class TruthfulDriver extends PostgresDriver {
  override async rollbackTransaction(connection: DatabaseConnection): Promise<void> {
    await super.rollbackTransaction(connection).catch(() => {})
  }
}

class TruthfulDialect extends PostgresDialect {
  readonly #config: PostgresDialectConfig
  constructor(config: PostgresDialectConfig) {
    super(config)
    this.#config = config
  }

  override createDriver(): PostgresDriver {
    return new TruthfulDriver(this.#config)
  }
}
