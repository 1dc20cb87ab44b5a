/** What others make of the contract: the rules of two linters, and clients in three languages that nobody wrote. */

import { execFile } from 'node:child_process'
import { cpSync, existsSync, mkdirSync, symlinkSync } from 'node:fs'
import type { AddressInfo } from 'node:net'
import { join } from 'node:path'
import { promisify } from 'node:util'
import t, { type Test } from 'tap'
import { PACKAGE_ROOT } from '../../src/package-root.js'
import { isInstalled, temporaryFolder } from '../helpers/programs.js'
import { fresh, startService } from '../helpers/service.js'

const run = promisify(execFile)
const CONTRACT = join(PACKAGE_ROOT, 'openapi', 'openapi.yaml')
const SOURCES = join(PACKAGE_ROOT, 'test', 'clients')
const npm = (name: string) => join(SOURCES, 'node_modules', '.bin', name)
const program = (name: string) => join(PACKAGE_ROOT, '.programs', 'bin', name)
// Why a test is skipped. CI installs all of it.
const WITHOUT_NPM = !existsSync(npm('redocly')) && 'npm ci --prefix test/clients installs what it needs'
const without = (program: 'openapi-python-client' | 'oapi-codegen' | 'go') => !isInstalled(program) && `${program} is not installed`

t.test('redocly\'s recommended rules find nothing', { skip: WITHOUT_NPM }, async (t) => {
  const { stdout } = await run(npm('redocly'), ['lint', '--config', join(SOURCES, 'redocly.yaml'), '--format', 'json', CONTRACT], { env: { ...process.env, REDOCLY_TELEMETRY: 'off', REDOCLY_SUPPRESS_UPDATE_NOTICE: 'true' }, maxBuffer: 1e8 }).catch((error: { stdout: string }) => error)
  t.same((JSON.parse(stdout) as { problems: { ruleId: string; message: string }[] }).problems.map(({ ruleId, message }) => `${ruleId}: ${message}`), [])
})

t.test('spectral\'s rules for OpenAPI find nothing', { skip: WITHOUT_NPM }, async (t) => {
  const { stdout } = await run(npm('spectral'), ['lint', '--ruleset', join(SOURCES, 'spectral.yaml'), '--format', 'json', '--quiet', CONTRACT], { maxBuffer: 1e8 }).catch((error: { stdout: string }) => error)
  t.same((JSON.parse(stdout) as { code: string; message: string }[]).map(({ code, message }) => `${code}: ${message}`), [])
})

t.test('generated clients issue, verify, change with null and revoke', async (t) => {
  const service = await startService(t)
  await service.app.listen({ port: 0, host: '127.0.0.1' })
  await fresh(service)
  const environment = {
    ...process.env,
    MECHA_KEYS_URL: `http://127.0.0.1:${(service.app.server.address() as AddressInfo).port}`,
    OPERATOR_TOKEN: await service.token(),
    GATEWAY_CREDENTIAL: await service.gateway(),
  }

  async function check(t: Test, command: string, args: string[], cwd: string): Promise<void> {
    const { stdout } = await run(command, args, { cwd, env: environment })
    const { id, ...said } = JSON.parse(stdout) as { id: string }
    t.same(said, { handle: 'sales^acmecorp', name_is_null: true, status: 'revoked', complete: true, refused_for: 'revoked', errors: 2 })
    const { body } = await service.call('GET', `/v1/keys/${id}`, { token: environment.OPERATOR_TOKEN })
    t.match(body, { status: 'revoked', name: null, revoke_reason: null }, 'and so it is')
  }

  t.test('TypeScript: openapi-typescript', { skip: WITHOUT_NPM }, async (t) => {
    const folder = sources(t, 'typescript')
    symlinkSync(join(SOURCES, 'node_modules'), join(folder, 'node_modules'))
    symlinkSync(join(SOURCES, 'package.json'), join(folder, 'package.json'))
    await run(npm('openapi-typescript'), [CONTRACT, '--output', join(folder, 'api.d.ts')])
    const types = ['--types', 'node', '--typeRoots', join(PACKAGE_ROOT, 'node_modules', '@types')]
    await run(npm('tsc'), ['--strict', '--skipLibCheck', '--exactOptionalPropertyTypes', '--target', 'es2022', '--module', 'nodenext', ...types, join(folder, 'main.ts')]).catch(({ stdout }: { stdout: string }) => t.fail(stdout))
    await check(t, process.execPath, ['main.js'], folder)
  })

  t.test('Python: openapi-python-client', { skip: without('openapi-python-client') }, async (t) => {
    const folder = sources(t, 'python')
    const { stdout } = await run(program('openapi-python-client'), ['generate', '--path', CONTRACT, '--config', 'openapi-python-client.yaml', '--meta', 'none', '--output-path', 'mecha_keys_api'], { cwd: folder })
    t.notMatch(stdout, /warning|error/i, 'nothing is left out')
    await check(t, program('python'), ['main.py'], folder)
  })

  t.test('Go: oapi-codegen', { skip: without('oapi-codegen') || without('go') }, async (t) => {
    const folder = sources(t, 'go')
    mkdirSync(join(folder, 'api'), { recursive: true })
    await run(program('oapi-codegen'), ['-config', 'oapi-codegen.yaml', '-o', 'api/api.go', CONTRACT], { cwd: folder })
    await run('go', ['build', '-o', 'client', '.'], { cwd: folder })
    await check(t, './client', [], folder)
  })
})

/** What was written by hand of a client, where the rest can be generated beside it. */
function sources(t: Pick<Test, 'teardown'>, language: string): string {
  const folder = temporaryFolder(t)
  cpSync(join(SOURCES, language), folder, { recursive: true })
  return folder
}
