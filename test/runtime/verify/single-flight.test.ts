import t from 'tap'
import { SingleFlight } from '../../../src/runtime/verify/single-flight.js'

t.test('work is done once for all callers, and given up when the last of them has left', async (t) => {
  const flight = new SingleFlight<string>()
  const [first, second] = [new AbortController(), new AbortController()]
  const signals: AbortSignal[] = []
  let finish = (_result: string) => {}
  const work = (signal: AbortSignal) => {
    signals.push(signal)
    return new Promise<string>((resolve) => (finish = resolve))
  }
  const results = [first, second].map(({ signal }) => flight.join('name', signal, work))
  t.equal(signals.length, 1)
  first.abort()
  t.equal(signals[0]!.aborted, false, 'the second still waits')
  second.abort()
  t.equal(signals[0]!.aborted, true)
  finish('too late')
  t.same(await Promise.all(results), ['too late', 'too late'])
  await t.rejects(flight.join('name', first.signal, work), 'whoever has left already starts nothing')
  t.equal(signals.length, 1)
})
