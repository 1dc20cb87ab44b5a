import { execFile } from 'node:child_process'
import { once } from 'node:events'
import { createServer } from 'node:net'
import { join } from 'node:path'
import { pathToFileURL } from 'node:url'
import { promisify } from 'node:util'
import t from 'tap'
import { freePort } from '../../src/db/embedded/free-port.js'
import { PACKAGE_ROOT } from '../../src/package-root.js'

t.test('a port is given once, to one of all processes that ask', async (t) => {
  const module = pathToFileURL(join(PACKAGE_ROOT, 'dist', 'src', 'db', 'embedded', 'free-port.js')).href
  const program = `import { freePort } from ${JSON.stringify(module)}
    const ports = []
    for (let n = 0; n < 300; n++) ports.push(await freePort())
    console.log(JSON.stringify(ports))
    process.stdin.resume()`
  // They hold what they were given until both have all of it.
  const children = [1, 2].map(() => promisify(execFile)(process.execPath, ['--input-type=module', '-e', program]))
  const given = await Promise.all(children.map(async ({ child }) => JSON.parse(String((await once(child.stdout!, 'data'))[0])) as number[]))
  for (const { child } of children) child.stdin!.end()
  await Promise.all(children)
  const ports = given.flat()
  t.equal(ports.length, 600)
  t.equal(new Set(ports).size, 600)
})

t.test('a port can be listened on, and is below those that systems give to whoever asks for any', async (t) => {
  const port = await freePort()
  const server = createServer().listen(port, '127.0.0.1')
  await once(server, 'listening')
  t.teardown(() => server.close())
  t.ok(port < 32_768, String(port))
})
