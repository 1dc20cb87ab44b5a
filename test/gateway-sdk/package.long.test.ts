/** The gateway SDK as others install it: packed, in an empty project, without a registry. */

import { execFile } from 'node:child_process'
import { cpSync, existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { promisify } from 'node:util'
import t, { type Test } from 'tap'
import { PACKAGE_ROOT } from '../../src/package-root.js'
import { serve } from '../helpers/gateway.js'

interface Manifest {
  readonly name: string
  readonly version: string
  readonly engines: object
  readonly dependencies: Record<string, string>
  readonly devDependencies: Record<string, string>
}

const manifestIn = (folder: string) => JSON.parse(readFileSync(join(folder, 'package.json'), 'utf8')) as Manifest
const SDK = manifestIn(join(PACKAGE_ROOT, 'sdk'))
const SERVICE = manifestIn(PACKAGE_ROOT)
/** Longest that npm may take. */
const TIMEOUT_MS = 60_000
/** An address where no registry is. */
const NOWHERE = 'http://127.0.0.1:1'

t.test('the package of the SDK works in an empty project', async (t) => {
  const project = mkdtempSync(join(tmpdir(), 'mecha-keys-project-'))
  t.teardown(() => rmSync(project, { recursive: true }))
  const npm = npmIn(project)
  const { service, url, credential } = await serve(t)
  const { key, plaintext_key } = await service.issue({ scopes: ['orders:read'] })
  const run = async (file: string, source: string) => {
    writeFileSync(join(project, file), source)
    const { stdout } = await promisify(execFile)(process.execPath, [file], { cwd: project, timeout: TIMEOUT_MS, env: { KEYS_URL: url, GATEWAY_CREDENTIAL: credential, MECHA_KEY: plaintext_key } })
    return stdout
  }

  const packed = await npm('pack', '--json', '--pack-destination', project, join(PACKAGE_ROOT, 'sdk'))
  const [{ filename, files, unpackedSize }] = JSON.parse(packed) as [{ filename: string; files: { path: string }[]; unpackedSize: number }]
  const modules = ['gateway-sdk', 'protocol'].flatMap((folder) => readdirSync(join(PACKAGE_ROOT, 'src', folder)).map((file) => `${folder}/${file.replace(/\.ts$/, '')}`))
  const expected = ['README.md', 'package.json', ...modules.flatMap((name) => [`dist/${name}.js`, `dist/${name}.d.ts`])]
  t.same(files.map(({ path }) => path).sort(), expected.sort(), 'what was compiled of the SDK and the protocol, and nothing else')
  t.ok(unpackedSize < 200_000, `${unpackedSize} bytes`)
  const text = expected.map((path) => readFileSync(join(PACKAGE_ROOT, 'sdk', path), 'utf8')).join('\n')
  t.notMatch(text, /sourceMappingURL|from '\.\.\/(?!protocol\/)/, 'no map that is not there, nothing of the service')

  // A registry would have given what it depends on. Here it is packed from what the service has of it.
  const others = await Promise.all(Object.keys(SDK.dependencies).map((name) => npm('pack', '--json', '--ignore-scripts', '--pack-destination', project, join(PACKAGE_ROOT, 'node_modules', name))))
  const tarballs = [filename, ...others.map((said) => (JSON.parse(said) as [{ filename: string }])[0].filename)].map((file) => `./${file}`)
  writeFileSync(join(project, 'package.json'), '{ "private": true, "type": "module" }\n')
  await npm('install', '--offline', '--no-audit', '--no-fund', ...tarballs)
  t.same(readdirSync(join(project, 'node_modules')).filter((name) => !name.startsWith('.')).sort(), ['mecha-keys', ...Object.keys(SDK.dependencies)].sort(), "with none of the service's dependencies")
  t.notOk(existsSync(join(project, 'node_modules', '.bin', 'mecha-keys')), 'the command line stays with the service')

  const program = `
    const verifier = createVerifier({ url: process.env.KEYS_URL, credential: process.env.GATEWAY_CREDENTIAL })
    const good = await verifier.verify(process.env.MECHA_KEY, { scopes: ['orders:read'] })
    const bad = await verifier.verify(process.env.MECHA_KEY + 'x')
    await verifier.close()
    console.log(good.valid, good.mecha.handle, good.key_id, bad.code)`
  const verified = `true sales^acmecorp ${key.id} malformed\n`
  t.equal(await run('program.js', `import { createVerifier } from 'mecha-keys/gateway'\n${program}`), verified, 'imported')
  t.equal(await run('program.cjs', `const { createVerifier } = require('mecha-keys/gateway')\n;(async () => {${program}})()`), verified, 'and required')

  t.test('with the strictest types, its declarations checked as well', async (t) => {
    const source = `
      import { createServer } from 'node:http'
      import { authenticateRequest, createVerifier, signRequest, VerifierUnavailable, type Verdict, type VerifierOptions } from 'mecha-keys/gateway'
      const options: VerifierOptions = { url: 'https://keys.example.com', credential: 'x', onStreamLost: ({ reason }) => console.error(reason) }
      const verifier = createVerifier(options)
      export const server = createServer(async (request, response) => {
        const identity = await authenticateRequest(verifier, request, response, { scopes: ['orders:read'] })
        if (identity) response.end(identity.mecha.handle.toUpperCase())
      })
      export async function handleOf(key: string): Promise<string | undefined> {
        try {
          const verdict: Verdict = await verifier.verify(key)
          return verdict.valid ? verdict.mecha.handle : undefined
        } catch (error) {
          if (error instanceof VerifierUnavailable) return error.code
          throw error
        }
      }
      export const signature: string = signRequest({ key: 'k', body: '', nonce: 'n', timestamp: 't' })
      // @ts-expect-error a credential is needed
      createVerifier({ url: 'https://keys.example.com' })`
    await compile(t, 'consumer.ts', source, ['--module', 'nodenext'])
  })

  t.test('beside a Fastify of its own', async (t) => {
    symlinkSync(join(PACKAGE_ROOT, 'node_modules', 'fastify'), join(project, 'node_modules', 'fastify'))
    const source = `
      import Fastify from 'fastify'
      import { createVerifier } from 'mecha-keys/gateway'
      import { mechaAuth } from 'mecha-keys/gateway/fastify'
      const verifier = createVerifier({ url: process.env['KEYS_URL']!, credential: process.env['GATEWAY_CREDENTIAL']! })
      const app = Fastify()
      await app.register(mechaAuth, { verifier, scopes: ['orders:read'] })
      app.get('/me', async ({ mecha }) => mecha.mecha.handle)
      app.addHook('onClose', () => verifier.close())
      const ask = async (headers: Record<string, string>) => (await app.inject({ url: '/me', headers })).statusCode
      console.log(await ask({ 'x-mecha-key': process.env['MECHA_KEY']! }), await ask({}))
      await app.close()`
    await compile(t, 'with-fastify.ts', source, ['--module', 'esnext', '--moduleResolution', 'bundler', '--skipLibCheck'])
    t.equal(await run('with-fastify.js', readFileSync(join(project, 'with-fastify.js'), 'utf8')), '200 401\n')
  })

  async function compile(t: Test, file: string, source: string, options: readonly string[]): Promise<void> {
    writeFileSync(join(project, file), source)
    const strict = ['--strict', '--exactOptionalPropertyTypes', '--noUncheckedIndexedAccess', '--noPropertyAccessFromIndexSignature', '--verbatimModuleSyntax', '--target', 'es2023']
    const types = ['--types', 'node', '--typeRoots', join(PACKAGE_ROOT, 'node_modules', '@types')]
    const said = await promisify(execFile)(process.execPath, [join(PACKAGE_ROOT, 'node_modules', 'typescript', 'bin', 'tsc'), ...strict, ...types, ...options, file], { cwd: project, timeout: TIMEOUT_MS })
      .then(() => '', ({ stdout }: { stdout: string }) => stdout)
    t.equal(said, '', options.join(' '))
  }
})

t.test('the package says of itself what the service says', async (t) => {
  t.equal(SDK.version, SERVICE.version)
  t.same(SDK.engines, SERVICE.engines)
  const shared = Object.entries(SDK.dependencies).map(([name]) => [name, SERVICE.dependencies[name] ?? SERVICE.devDependencies[name]])
  t.same(SDK.dependencies, Object.fromEntries(shared), 'its dependencies are tested in the versions that the service has of them')
})

t.test('the service itself is not packed by mistake', async (t) => {
  const folder = mkdtempSync(join(tmpdir(), 'mecha-keys-pack-'))
  t.teardown(() => rmSync(folder, { recursive: true }))
  for (const file of ['package.json', 'sdk/package.json']) {
    mkdirSync(join(folder, file, '..'), { recursive: true })
    cpSync(join(PACKAGE_ROOT, file), join(folder, file))
  }
  const said = await npmIn(folder)('pack').then(() => 'it was packed', ({ stderr }: { stderr: string }) => stderr)
  t.match(said, /npm pack --workspace sdk/)
  t.same(readdirSync(folder).filter((file) => file.endsWith('.tgz')), [])
})

/** npm in a folder, with a cache of its own and no registry. */
function npmIn(folder: string): (...args: string[]) => Promise<string> {
  const env = { PATH: process.env['PATH'], HOME: folder, npm_config_cache: join(folder, '.npm'), npm_config_registry: NOWHERE, npm_config_update_notifier: 'false' }
  return async (...args) => (await promisify(execFile)('npm', args, { cwd: folder, timeout: TIMEOUT_MS, env })).stdout
}
