import { execFile } from 'node:child_process'
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { promisify } from 'node:util'
import t from 'tap'
import ts from 'typescript'
import { PACKAGE_ROOT } from '../../src/package-root.js'
import { serve } from '../helpers/gateway.js'

const PAGE = readFileSync(join(PACKAGE_ROOT, 'docs', 'gateway-sdk.md'), 'utf8')
const BLOCKS = [...PAGE.matchAll(/```ts\n([\s\S]*?)```/g)].map((match) => match[1]!)

t.test("every program on the SDK's page is one, by the types that the package exports", async (t) => {
  t.equal(BLOCKS.length, 4)
  // Inside of the package, which can then import itself by its name.
  const folder = mkdtempSync(join(PACKAGE_ROOT, 'dist', 'docs-'))
  t.teardown(() => rmSync(folder, { recursive: true }))
  const files = BLOCKS.map((block, i) => {
    const file = join(folder, `block${i}.ts`)
    writeFileSync(file, block)
    return file
  })
  const program = ts.createProgram(files, {
    module: ts.ModuleKind.NodeNext, target: ts.ScriptTarget.ES2023, strict: true, exactOptionalPropertyTypes: true, noUncheckedIndexedAccess: true, noEmit: true, skipLibCheck: true, types: ['node'], typeRoots: [join(PACKAGE_ROOT, 'node_modules', '@types')],
  })
  const errors = ts.getPreEmitDiagnostics(program).map(({ messageText, file }) => `${file?.fileName}: ${ts.flattenDiagnosticMessageText(messageText, '\n')}`)
  t.same(errors, [])
})

t.test("the first program on the SDK's page runs, as a package that imports it by its name", async (t) => {
  const { service, url, credential } = await serve(t)
  const { key, plaintext_key } = await service.issue({ scopes: ['orders:read'] })
  const folder = mkdtempSync(join(PACKAGE_ROOT, 'dist', 'docs-'))
  t.teardown(() => rmSync(folder, { recursive: true }))
  const file = join(folder, 'program.mjs')
  const run = async (address: string) => {
    const source = BLOCKS[0]!.replace('https://keys.example.com', address)
    writeFileSync(file, ts.transpileModule(source, { compilerOptions: { module: ts.ModuleKind.ESNext, target: ts.ScriptTarget.ES2023 } }).outputText)
    return (await promisify(execFile)(process.execPath, [file], { env: { GATEWAY_CREDENTIAL: credential, MECHA_KEY: plaintext_key } })).stdout
  }
  t.equal(await run(url), `sales^acmecorp may, by ${key.id}\n`)
  t.equal(await run('http://127.0.0.1:1'), 'nobody knows: answer 503\n')
})

t.test('the SDK imports nothing of the service, nor of any other package but two', async (t) => {
  const { stdout } = await promisify(execFile)('grep', ['-rhoE', "(from|import\\()\\s*'[^']+'", join(PACKAGE_ROOT, 'dist', 'src', 'gateway-sdk'), join(PACKAGE_ROOT, 'dist', 'src', 'protocol'), '--include=*.js'])
  const imported = new Set([...stdout.matchAll(/'([^']+)'/g)].map((match) => match[1]!).filter((name) => !/^(\.\/|\.\.\/protocol\/|node:|mecha-keys\/)/.test(name)))
  t.same([...imported].sort(), ['eventsource-parser', 'lru-cache'])
})
