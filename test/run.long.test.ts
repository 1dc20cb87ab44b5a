/** What runs the tests: a folder's tests and nothing else of it, those that do not load, and a container runtime without the image. */

import { once } from 'node:events'
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { basename, dirname, join } from 'node:path'
import t, { type Test } from 'tap'
import { PACKAGE_ROOT } from '../src/package-root.js'
import { startCommand } from './helpers/process.js'

const RUN = join(PACKAGE_ROOT, 'dist', 'test', 'run.js')
const GOOD = "import t from 'tap'\nt.test('two', async (t) => (t.pass(), t.pass()))\nt.test('none', { skip: 'a reason' }, () => {})\n"

t.test('a folder is its tests alone, and one that does not load is counted', async (t) => {
  const folder = folderOf(t, { 'good.test.ts': GOOD, 'good.test.d.ts': undefined, 'helper.ts': 'process.exit(1)', 'broken.test.ts': undefined, 'node_modules/others/others.test.ts': undefined })
  const { code, stdout } = await startCommand(t, process.execPath, [RUN, folder], { env: { TEST_DATABASE_URL: process.env['TEST_SERVER_URL'] } }).ended()
  t.equal(code, 1)
  t.match(stdout, /^PostgreSQL: TEST_DATABASE_URL\n/)
  t.match(stdout, new RegExp(`\n3 passed, 0 failed, 1 skipped; 1 of 2 files did not load or end: ${folder}/broken\\.test\\.ts\n$`))

  const fine = await startCommand(t, process.execPath, [RUN, join(folder, 'good.test.ts')], { env: { TEST_DATABASE_URL: process.env['TEST_SERVER_URL'] } }).ended()
  t.equal(fine.code, 0)
  t.match(fine.stdout, /\n3 passed, 0 failed, 1 skipped\n$/)
})

t.test('what is no test is refused before anything starts', async (t) => {
  for (const nothing of ['docs', 'test/nowhere.test.ts', 'src/main.ts']) {
    const { code, stdout, stderr } = await startCommand(t, process.execPath, [RUN, nothing]).ended()
    t.match({ code, stdout }, { code: 1, stdout: '' })
    t.match(stderr, `${nothing} is no test and has none`)
  }
})

t.test('a container runtime that answers and cannot have the image is told of, and the embedded PostgreSQL is used', async (t) => {
  const asked: string[] = []
  const runtime = createServer((request, response) => {
    asked.push(`${request.method} ${request.url!.split('?')[0]}`)
    const isInfo = request.url!.endsWith('/info')
    response.writeHead(isInfo ? 200 : 404, { 'content-type': 'application/json' }).end(isInfo ? '{}' : '{"message":"No such image: it cannot be had here"}')
  }).listen(0, '127.0.0.1')
  await once(runtime, 'listening')
  t.teardown(() => runtime.close())
  const folder = folderOf(t, { 'good.test.ts': GOOD })
  const DOCKER_HOST = `tcp://127.0.0.1:${(runtime.address() as AddressInfo).port}`
  const { code, stdout } = await startCommand(t, process.execPath, [RUN, folder], { env: { DOCKER_HOST } }).ended()
  t.equal(code, 0)
  t.match(stdout, /^A container runtime answers, but postgres:18 does not start: [^\n]*cannot be had here[^\n]*\nPostgreSQL: embedded\n/)
  t.ok(asked.includes('POST /images/create'), asked.join())
})

/** A folder of tests with what they were compiled to: `undefined` for what was not. */
function folderOf(t: Test, files: Readonly<Record<string, string | undefined>>): string {
  const folder = join('dist', basename(mkdtempSync(join(PACKAGE_ROOT, 'dist', 'tests-'))))
  mkdirSync(join(PACKAGE_ROOT, 'dist', folder), { recursive: true })
  t.teardown(() => {
    for (const made of [folder, join('dist', folder)]) rmSync(join(PACKAGE_ROOT, made), { recursive: true, force: true })
  })
  for (const [name, compiled] of Object.entries(files)) {
    mkdirSync(dirname(join(PACKAGE_ROOT, folder, name)), { recursive: true })
    writeFileSync(join(PACKAGE_ROOT, folder, name), '')
    if (compiled !== undefined) writeFileSync(join(PACKAGE_ROOT, 'dist', folder, name.replace(/\.ts$/, '.js')), compiled)
  }
  return folder
}
