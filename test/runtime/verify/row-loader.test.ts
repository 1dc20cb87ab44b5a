import { setTimeout as sleep } from 'node:timers/promises'
import t from 'tap'
import { newId } from '../../../src/credentials/id.js'
import { RowLoader } from '../../../src/runtime/verify/row-loader.js'

const outcome = async (reader: RowLoader) => reader.read(newId()).then(() => 'read')
const settled = (reader: RowLoader) => outcome(reader).catch((error: { code: string }) => error.code)

t.test('a statement without an answer for a second is a database in trouble: who comes then is refused at once', async (t) => {
  let answer = () => {}
  const reader = new RowLoader({ read: (_ids, whileSent) => whileSent(() => new Promise((resolve) => (answer = () => resolve([])))), statements: 2, limit: 10 })
  const first = settled(reader)
  await sleep(1100)
  t.equal(await settled(reader), 'database_unavailable')
  answer()
  t.equal(await first, 'read')
  const next = settled(reader)
  await sleep(10)
  answer()
  t.equal(await next, 'read')
})

t.test('a read that waits for the feed to say which history counts, and is sent again then, keeps nobody away', async (t) => {
  let goOn = () => {}
  const doubt = new Promise<void>((resolve) => (goOn = resolve))
  let isFirst = true
  const reader = new RowLoader({
    read: async (_ids, whileSent) => {
      await whileSent(async () => undefined)
      if (isFirst) {
        isFirst = false
        await doubt
        await whileSent(async () => undefined)
      }
      return []
    },
    statements: 2, limit: 10,
  })
  const first = settled(reader)
  await sleep(1100)
  t.equal(await settled(reader), 'read')
  goOn()
  t.equal(await first, 'read')
})
