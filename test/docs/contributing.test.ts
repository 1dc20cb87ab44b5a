/** The pages for those who change the service: what they name is there, and what they say to run works. */

import { existsSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { WebSocket } from 'ws'
import { PACKAGE_ROOT } from '../../src/package-root.js'
import { createDatabase } from '../helpers/database.js'
import { startCommand } from '../helpers/process.js'
import { testEnvironment } from '../helpers/service.js'

const PAGES = ['CONTRIBUTING.md', 'CHANGELOG.md', 'SECURITY.md', 'docs/dependencies.md'] as const
const CONTRIBUTING = read('CONTRIBUTING.md')

t.test('every script and file that these pages name is there', async (t) => {
  const { scripts } = JSON.parse(read('package.json')) as { scripts: Record<string, string> }
  for (const page of PAGES) {
    const text = read(page)
    const named = [...text.matchAll(/npm run (?:--silent )?([a-z:]+)|npm (test|start)\b/g)].map(([, script, short]) => (script ?? short)!)
    t.same(named.filter((name) => !scripts[name]), [], `${page}: scripts`)
    const paths = [...text.matchAll(/`([\w.-]+(?:\/[\w.-]+)*\/[\w.-]+\.\w+)`/g), ...text.matchAll(/^npm .* (test\/\S+)$/gm)].map((match) => match[1]!)
    t.same(paths.filter((path) => !path.includes('NNNN') && !existsSync(join(PACKAGE_ROOT, path))), [], `${page}: files`)
  }
})

t.test('the service is debugged by the command that is given', async (t) => {
  const command = blockUnder('Debug the service', 'bash').replace('npm run build && ', '')
  const free = command.replace('--inspect ', '--inspect=0 ')
  t.not(free, command)
  const database = await createDatabase(t)
  const service = startCommand(t, 'sh', ['-c', `${free} 2>&1`], { env: { ...testEnvironment(database), PORT: '0' } })
  await service.line(/Debugger listening on ws:/)
  await service.line(/listening at http:/)
})

t.test('a test waits for a debugger at the line that is given', async (t) => {
  const line = blockUnder('Debug the service', 'ts')
  const waiting = startCommand(t, 'sh', ['-c', 'exec "$0" --input-type=module --eval "$1" 2>&1', process.execPath, `${line}; console.log('went on')`])
  const [, url = ''] = await waiting.line(/Debugger listening on (ws:\S+)/)
  const debug = new WebSocket(url)
  debug.on('open', () => debug.send(JSON.stringify({ id: 1, method: 'Runtime.runIfWaitingForDebugger' })))
  await waiting.line(/went on/)
  debug.terminate()
  t.match(await waiting.ended(), { code: 0 })
})

t.test('every production dependency has its reason, and nothing else has', async (t) => {
  const production = ['package.json', 'sdk/package.json'].flatMap((file) => {
    const { dependencies, peerDependencies = {} } = JSON.parse(read(file)) as { dependencies: object; peerDependencies?: object }
    return Object.keys({ ...dependencies, ...peerDependencies })
  })
  const rows = [...read('docs/dependencies.md').matchAll(/^\| `([^`]+)` \| ([^|]+) \| ([^|]+) \|$/gm)]
  t.same(rows.map(([, name]) => name).sort(), [...new Set(production)].sort())
})

t.test('.nvmrc names the version of Node.js that the image has', async (t) => {
  t.equal(read('.nvmrc').trim(), /^ARG NODE_VERSION=(.+)$/m.exec(read('Dockerfile'))?.[1])
})

t.test('the changelog begins with what is pending', async (t) => {
  t.equal(/^## (.+)$/m.exec(read('CHANGELOG.md'))?.[1], 'Pending')
})

function read(file: string): string {
  return readFileSync(join(PACKAGE_ROOT, file), 'utf8')
}

/** The first block of a language in a section of CONTRIBUTING.md. */
function blockUnder(heading: string, language: string): string {
  const section = CONTRIBUTING.split(`\n## ${heading}\n`)[1]!.split('\n## ')[0]!
  return section.split(`\`\`\`${language}\n`)[1]!.split('\n```')[0]!
}
