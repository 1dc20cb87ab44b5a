/** The documented back-up and restore. `restore.long.test.ts` has the same with a thousand keys. */

import t from 'tap'
import { openDatabase } from '../../../src/db/pool.js'
import { createCluster, createServiceDatabase } from '../../helpers/postgres.js'
import { startService } from '../../helpers/service.js'
import { backUpAndRestore, commandsUnder, held, openTerminal, programs, recovered, skip } from './story.js'

t.test('back up, revoke, restore, replay: what was revoked is accepted at no moment', { skip }, (t) => backUpAndRestore(t, 50))

t.test('without a file, the operator accepts the database as it is, in so many words', { skip }, async (t) => {
  const cluster = await createCluster(t, programs!)
  const urls = await createServiceDatabase(cluster)
  const terminal = await openTerminal(t, urls)
  // What was made after the back-up is no obstacle: a month's partition of events, as `events expire` makes it.
  const month = `psql "$MIGRATE_DATABASE_URL" -qc "CREATE TABLE events_before_2999_01 PARTITION OF events FOR VALUES FROM ('2998-12-01') TO ('2999-01-01')"`
  await terminal.succeed(t, 'mecha-keys migrate --with-logins', 'mecha-keys events expire', ...commandsUnder('## Back-up', 'pg_dump'), month, commandsUnder('## Restore', '--clean')[0]!)
  const db = openDatabase({ url: urls.MIGRATE_DATABASE_URL, size: 1, timeoutMs: 30_000, name: 'test' })
  t.teardown(() => db.destroy())
  const service = await startService(t, {}, { owner: urls.MIGRATE_DATABASE_URL, control: urls.DATABASE_URL, runtime: urls.RUNTIME_DATABASE_URL, db })
  await held(t, [service])
  t.match(await terminal.run('mecha-keys restore waive'), { code: 2, output: /--yes-revocations-may-be-lost/ })
  await held(t, [service])
  await terminal.succeed(t, ...commandsUnder('## Restore', 'waive'))
  await recovered([service])
  const { plaintext_key } = await service.issue()
  t.match(await service.verify(plaintext_key), { valid: true })
  const events = await db.selectFrom('events').selectAll().where('type', '=', 'database.accepted').execute()
  t.match(events, [{ kind: 'database', actor: /^cli:/, data: { how: 'waive' } }])
})

t.test('a file that begins after the back-up is refused', { skip }, async (t) => {
  const cluster = await createCluster(t, programs!)
  const urls = await createServiceDatabase(cluster)
  const terminal = await openTerminal(t, urls)
  await terminal.succeed(t, 'mecha-keys migrate --with-logins')
  const db = openDatabase({ url: urls.MIGRATE_DATABASE_URL, size: 1, timeoutMs: 30_000, name: 'test' })
  t.teardown(() => db.destroy())
  const service = await startService(t, {}, { owner: urls.MIGRATE_DATABASE_URL, control: urls.DATABASE_URL, runtime: urls.RUNTIME_DATABASE_URL, db })
  const { key } = await service.issue()
  await terminal.succeed(t, ...commandsUnder('## Back-up', 'pg_dump'))
  await service.call('POST', `/v1/keys/${key.id}/revoke`, { token: await service.token(), body: {} })
  const { body } = await service.call('GET', '/v1/events', { token: await service.token() })
  await terminal.succeed(t, `mecha-keys events --after ${body.events.at(-2).id} --output events.jsonl`, ...commandsUnder('## Restore', '--clean').slice(0, 1))
  t.match(await terminal.run('mecha-keys restore replay events.jsonl'), { code: 78, output: /no event in common/ })
  await held(t, [service])
})
