/** Loaded beside the program by tests of its memory. `collect` on standard input collects garbage, `heap FILE` writes a heap snapshot. */

import { createInterface } from 'node:readline'
import { setFlagsFromString, writeHeapSnapshot } from 'node:v8'
import { runInNewContext } from 'node:vm'

setFlagsFromString('--expose-gc')
const collectGarbage = runInNewContext('gc') as () => void

createInterface({ input: process.stdin }).on('line', (line) => {
  if (line.startsWith('heap ')) writeHeapSnapshot(line.slice('heap '.length))
  else collectGarbage()
  process.stdout.write(`done: ${line}\n`)
})
