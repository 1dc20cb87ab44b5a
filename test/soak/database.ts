/** The soak's PostgreSQL: one that keeps what it is told to keep, its copies, and what an older backup would make of it. */

import { execFile } from 'node:child_process'
import { appendFileSync, chownSync, copyFileSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { promisify } from 'node:util'
import { Client } from 'pg'
import { startEmbedded, type EmbeddedDatabase } from '../../src/db/embedded/embedded.js'
import { PACKAGE_ROOT } from '../../src/package-root.js'

const run = promisify(execFile)
/** Longest wait for a database: a bound, and no expectation. */
const PATIENCE_MS = 60_000
/** PostgreSQL's `deadlock_detected`. */
const DEADLOCK = '40P01'
const RESTORE_ATTEMPTS = 5

/** The contents of all tables, as a logical dump has them. */
export type Dump = ReadonlyMap<string, string>

export class SoakDatabase {
  #running: EmbeddedDatabase | undefined

  /** @param environment what the server is started with */
  private constructor(private readonly folder: string, private readonly environment: Record<string, string>) {}

  static async start(environment: Record<string, string>): Promise<SoakDatabase> {
    const database = new SoakDatabase(emptyFolder(), environment)
    await database.start()
    return database
  }

  get urls() {
    if (!this.#running) throw new Error('the database is not running')
    return this.#running.urls
  }

  async start(): Promise<void> {
    for (const end = performance.now() + PATIENCE_MS; !this.#running; ) {
      // Backends of a postmaster that was killed hold its memory until they have noticed.
      this.#running = await startEmbedded({ dataDir: this.folder, environment: this.environment }).catch((error: unknown) => {
        if (performance.now() > end) throw error
        return undefined
      })
    }
  }

  async stop(how: 'in order' | 'SIGKILL'): Promise<void> {
    if (how === 'SIGKILL') process.kill(Number(this.#postmaster()[0]), 'SIGKILL')
    await this.#running?.stop()
    this.#running = undefined
  }

  async remove(): Promise<void> {
    await this.stop('in order')
    rmSync(this.folder, { recursive: true, force: true })
  }

  /** As the owner, on a connection of its own that writes even where {@link setReadOnly} holds. */
  async query<Row extends object = Record<string, unknown>>(statement: string, values: readonly unknown[] = []): Promise<Row[]> {
    return this.#session(async (client) => (await client.query<Row>(statement, [...values])).rows)
  }

  /** Refuses writes by everybody else, or takes them again. Resolves when nobody is in a transaction that writes. */
  async setReadOnly(isReadOnly: boolean): Promise<void> {
    await this.query(isReadOnly ? 'ALTER SYSTEM SET default_transaction_read_only = on' : 'ALTER SYSTEM RESET default_transaction_read_only')
    await this.query('SELECT pg_reload_conf()')
    if (!isReadOnly) return
    // A session takes the setting at its next statement; transactions that were open before may still write.
    await sleep(100)
    await until(async () => (await this.query("SELECT 1 FROM pg_stat_activity WHERE backend_xid IS NOT NULL AND backend_type = 'client backend' AND pid <> pg_backend_pid()")).length === 0)
  }

  /** Holds up every statement that needs a table, for as long as `act` takes. */
  async whileLocked(act: () => Promise<unknown>): Promise<void> {
    await this.#session(async (client) => {
      await client.query('BEGIN')
      await client.query('LOCK TABLE keys, events IN ACCESS EXCLUSIVE MODE')
      await act()
      await client.query('ROLLBACK')
    })
  }

  /** A copy that follows this database. */
  async startStandby(): Promise<Standby> {
    const copy = new SoakDatabase(emptyFolder(), this.environment)
    const data = copy.#data
    mkdirSync(join(copy.folder, 'postgres'), { mode: 0o755 })
    copyFileSync(join(this.folder, 'postgres.json'), join(copy.folder, 'postgres.json'))
    await this.#session(async (client) => {
      await client.query("SELECT pg_backup_start('soak', true)")
      // A live folder: files may go while they are copied, of which replaying the log takes care.
      await run('cp', ['-a', this.#data, data]).catch(() => {})
      const { rows } = await client.query<{ labelfile: string }>('SELECT labelfile FROM pg_backup_stop(false)')
      writeFileSync(join(data, 'backup_label'), rows[0]!.labelfile)
    })
    const { uid, gid } = statSync(this.#data)
    const { hostname, port, username, password } = new URL(this.urls.owner)
    appendFileSync(join(data, 'postgresql.auto.conf'), `\nprimary_conninfo = 'host=${hostname} port=${port} user=${username} password=${password}'\n`)
    for (const file of ['postmaster.pid', 'postmaster.opts']) rmSync(join(data, file), { force: true })
    writeFileSync(join(data, 'standby.signal'), '')
    for (const file of ['backup_label', 'standby.signal', 'postgresql.auto.conf', '..']) chownSync(join(data, file), uid, gid)
    writeFileSync(join(copy.folder, 'postgres', 'initialised'), '')
    const started = startEmbedded({ dataDir: copy.folder, environment: this.environment })
    started.catch(() => {})
    return {
      promote: async () => {
        const [end] = await this.query<{ lsn: string }>('SELECT pg_current_wal_flush_lsn()::text AS lsn')
        await until(async () => (await this.query('SELECT 1 FROM pg_stat_replication WHERE replay_lsn >= $1::pg_lsn', [end!.lsn])).length > 0)
        const own = Object.assign(new URL(this.urls.owner), { port: copy.#postmaster()[3]!.trim() }).href
        await withClient(own, (client) => client.query('SELECT pg_promote()'))
        copy.#running = await started
        await copy.setReadOnly(false)
        return copy
      },
    }
  }

  dump(): Promise<Dump> {
    return this.#session(async (client) => {
      await client.query('BEGIN ISOLATION LEVEL REPEATABLE READ')
      const dump = new Map<string, string>()
      for (const table of await tablesOf(client)) {
        const { rows } = await client.query<{ contents: string }>(`SELECT coalesce(json_agg(t), '[]')::text AS contents FROM ${table} t`)
        dump.set(table, rows[0]!.contents)
      }
      await client.query('COMMIT')
      return dump
    })
  }

  /**
   * What `pg_restore --clean --if-exists --single-transaction` does: everything is dropped, made anew and filled, and no
   * connection breaks. By SQL, because a `pg_dump` of this server's version is not to be had everywhere. Where it is in a
   * deadlock with a statement of the service, nothing of it was done, and it is begun again, as whoever restores would.
   */
  async restore(dump: Dump): Promise<void> {
    for (let attempt = 1; ; attempt++) {
      try {
        return await this.#restoreOnce(dump)
      } catch (error) {
        if ((error as { code?: unknown }).code !== DEADLOCK || attempt === RESTORE_ATTEMPTS) throw error
      }
    }
  }

  #restoreOnce(dump: Dump): Promise<void> {
    return this.#session(async (client) => {
      await client.query('BEGIN')
      for (const table of await tablesOf(client)) await client.query(`DROP TABLE ${table} CASCADE`)
      const { rows } = await client.query<{ routine: string }>(`
        SELECT format('%s %s', CASE prokind WHEN 'p' THEN 'PROCEDURE' ELSE 'FUNCTION' END, oid::regprocedure) AS routine
        FROM pg_proc WHERE pronamespace = 'public'::regnamespace`)
      for (const { routine } of rows) await client.query(`DROP ${routine} CASCADE`)
      await client.query('CREATE TABLE kysely_migration (name varchar(255) PRIMARY KEY, timestamp varchar(255) NOT NULL)')
      await client.query('CREATE TABLE kysely_migration_lock (id varchar(255) PRIMARY KEY, is_locked integer NOT NULL DEFAULT 0)')
      const migrations = join(PACKAGE_ROOT, 'migrations')
      for (const file of readdirSync(migrations).filter((name) => name.endsWith('.sql')).sort()) await client.query(readFileSync(join(migrations, file), 'utf8'))
      await fill(client, dump)
      await client.query('COMMIT')
    })
  }

  async #session<T>(act: (client: Client) => Promise<T>): Promise<T> {
    return withClient(this.urls.owner, async (client) => {
      await client.query('SET default_transaction_read_only = off')
      return act(client)
    })
  }

  get #data(): string {
    return join(this.folder, 'postgres', 'data')
  }

  #postmaster(): string[] {
    return readFileSync(join(this.#data, 'postmaster.pid'), 'utf8').split('\n')
  }
}

export interface Standby {
  /** Resolves when it has everything that its primary had when this was called, and takes writes. */
  promote(): Promise<SoakDatabase>
}

/** Puts rows into tables whose triggers look away meanwhile: a dump has made its triggers last. */
async function fill(client: Client, dump: Dump): Promise<void> {
  for (const [table, contents] of dump) {
    const { rows: triggers } = await client.query<{ name: string; mode: string }>(
      `SELECT quote_ident(tgname) AS name, tgenabled AS mode FROM pg_trigger WHERE tgrelid = $1::regclass AND NOT tgisinternal`, [table])
    const { rows: columns } = await client.query<{ name: string; sequence: string | null }>(
      `SELECT quote_ident(attname) AS name, pg_get_serial_sequence($1, attname) AS sequence FROM pg_attribute WHERE attrelid = $1::regclass AND attnum > 0 AND NOT attisdropped AND attgenerated = ''`, [table])
    const names = columns.map(({ name }) => name).join()
    await client.query(`ALTER TABLE ${table} DISABLE TRIGGER ALL`)
    // A migration may have made a row.
    await client.query(`DELETE FROM ${table}`)
    await client.query(`INSERT INTO ${table} (${names}) OVERRIDING SYSTEM VALUE SELECT ${names} FROM json_populate_recordset(NULL::${table}, $1::json)`, [contents])
    for (const { name, sequence } of columns) if (sequence) await client.query(`SELECT setval($1, coalesce((SELECT max(${name}) FROM ${table}), 0) + 1, false)`, [sequence])
    await client.query(`ALTER TABLE ${table} ENABLE TRIGGER ALL`)
    const modes: Record<string, string> = { A: 'ENABLE ALWAYS', R: 'ENABLE REPLICA', D: 'DISABLE' }
    for (const { name, mode } of triggers) if (modes[mode]) await client.query(`ALTER TABLE ${table} ${modes[mode]} TRIGGER ${name}`)
  }
}

/** Partitions go, and are read, with the table that they are of. */
async function tablesOf(client: Client): Promise<string[]> {
  const { rows } = await client.query<{ name: string }>("SELECT quote_ident(relname) AS name FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p') AND NOT relispartition ORDER BY 1")
  return rows.map(({ name }) => name)
}

async function withClient<T>(url: string, act: (client: Client) => Promise<T>): Promise<T> {
  const client = new Client({ connectionString: url })
  // What breaks it fails its statement as well.
  client.on('error', () => {})
  await client.connect()
  try {
    return await act(client)
  } finally {
    await client.end().catch(() => {})
  }
}

async function until(holds: () => Promise<boolean>): Promise<void> {
  for (const end = performance.now() + PATIENCE_MS; !(await holds()); await sleep(20)) if (performance.now() > end) throw new Error(`it never held: ${holds.toString()}`)
}

function emptyFolder(): string {
  return mkdtempSync(join(tmpdir(), 'mecha-keys-soak-'))
}
