import { existsSync, readdirSync, readFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { createRemoteJWKSet, jwtVerify } from 'jose'
import t, { type Test } from 'tap'
import { signOperatorToken } from '../../src/auth/operators.js'
import { SCOPES } from '../../src/auth/scopes.js'
import { loadConfig } from '../../src/config.js'
import { PACKAGE_ROOT } from '../../src/package-root.js'
import { WALK } from '../../src/walk.js'
import { contractOf, operationsOf } from '../helpers/contract.js'
import { createDatabase } from '../helpers/database.js'
import { start } from '../helpers/process.js'
import { openShell } from '../helpers/shell.js'
import { startService, testEnvironment } from '../helpers/service.js'
import { withSettings } from '../tools/documents.js'

const README = readFileSync(join(PACKAGE_ROOT, 'README.md'), 'utf8')
const ORG = 'acmecorp'

t.test("the README's walk is the one that npm start prints", async (t) => {
  t.same(commandsUnder('The walk').filter((line) => !line.startsWith('#')).slice(3), WALK.map(([, command]) => command))
  for (const [what] of WALK) t.ok(README.includes(`\n# ${what}\n`), what)
})

t.test("the README's walk works as it stands", async (t) => {
  const { url, shell, operatorToken, gatewayCredential } = await served(t)
  const filled: Record<string, string> = { URL: url, OPERATOR_TOKEN: operatorToken, GATEWAY_CREDENTIAL: gatewayCredential }
  const answers: any[] = []
  for (const line of commandsUnder('The walk')) {
    const name = /^export (\w+)=/.exec(line)?.[1]
    const { output, code } = await shell.run(name ? `export ${name}=${filled[name]}` : line)
    t.equal(code, 0, `${line}\n${output}`)
    if (name || line.startsWith('#')) continue
    const answer = JSON.parse(output)
    if (answer.plaintext_key) filled['MECHA_KEY'] = answer.plaintext_key
    answers.push(answer)
  }
  const [issued, list, verdict, revocation] = answers
  t.equal(answers.length, 4)
  t.match(issued, { key: { mecha: 'sales^acmecorp', name: 'first', status: 'active' }, plaintext_key: /^mecha_\w+$/ })
  t.match(list, { keys: [{ id: issued.key.id }], next_cursor: null })
  t.notOk(JSON.stringify(list).includes(issued.plaintext_key))
  t.match(verdict, { valid: true, key_id: issued.key.id, mecha: { handle: 'sales^acmecorp' } })
  t.match(revocation, { mecha: 'sales^acmecorp', revoked: [issued.key.id] })
  const again = await shell.run(WALK.find(([, line]) => line.includes('/v1/verify'))![1])
  t.same(JSON.parse(again.output), { valid: false, code: 'revoked' })
})

t.test("the README's exchange works as it stands", async (t) => {
  const { url, shell, operatorToken } = await served(t)
  const [line, ...more] = commandsUnder('API')
  t.same(more, [])
  const issued = await fetch(`${url}/v1/keys`, {
    method: 'POST',
    headers: { authorization: `Bearer ${operatorToken}`, 'content-type': 'application/json' },
    body: JSON.stringify({ mecha: 'sales^acmecorp' }),
  })
  const { plaintext_key } = (await issued.json()) as { plaintext_key: string }
  await shell.run(`export URL=${url} MECHA_KEY=${plaintext_key}`)
  const { output, code } = await shell.run(line!)
  t.equal(code, 0)
  const { access_token } = JSON.parse(output)
  const verified = await jwtVerify(access_token, createRemoteJWKSet(new URL(`${url}/.well-known/jwks.json`)))
  t.equal(verified.payload.sub, 'sales^acmecorp')
})

t.test("the README's command lines work as they stand", async (t) => {
  const { url, database, environment, shell, gatewayCredential } = await served(t)
  const exports = { ...environment, MECHA_KEYS_URL: url, MIGRATE_DATABASE_URL: database.owner, GATEWAY_CREDENTIAL: gatewayCredential }
  for (const [name, value] of Object.entries(exports))
    await shell.run(`export ${name}='${value}'`)
  const version = await shell.run('npx --no-install mecha-keys --version')
  t.match(version, { code: 0, output: /^\d+\.\d+\.\d+$/m }, 'npx finds the checkout itself')
  // The same program without the second that npx takes to find it.
  await shell.run(`npx() { shift; ${process.execPath} dist/src/main.js "$@"; }`)

  const expected: Record<string, RegExp> = {
    'migrate': /^nothing to apply$/,
    'config': /^ROOT_SECRETS +\*{8} +\(ROOT_SECRETS\)$/m,
    'root-secrets status': /^\w+ +newest +tags \d+ living keys/,
    'signing-keys list': /^[\w-]{43} +EdDSA +signing +signs since \S+$/,
    'signing-keys rotate': /^[\w-]{43} +EdDSA +next +published, signs from \S+$/m,
    'events': /^\{"id":"\d+",.*"type":"signing_key\.created"/,
    'operator-token': /^eyJ[\w-]+\.[\w-]+\.[\w-]+$/,
    'gateway create': /^mgw_\w+$/,
    'gateway list': /^gw_\w+ +active +edge$/m,
    'gateway revoke': /^revoked gw_\w+$/,
    'issue': /^key_\w+$/,
    'list': /^key_\w+ +active +sales\^acmecorp/,
    'inspect': /^a well-formed key with the prefix mecha: key_\w+$/,
    'verify': /^valid: key_\w+ of sales\^acmecorp$/,
    'revoke': /^revoked key_\w+ at \d{4}-/,
  }
  let ids = { gw: '', key: '' }
  const seen: string[] = []
  for (const line of commandsUnder('Command line')) {
    const command = /npx mecha-keys ([a-z-]+(?: (?:status|create|list|revoke|rotate)\b)?)/.exec(line)![1]!
    seen.push(command)
    // It is what answers the others here.
    if (command === 'serve') continue
    const { output, code } = await shell.run(line.replace('gw_…', ids.gw).replace('key_…', ids.key))
    t.equal(code, 0, line)
    t.match(output, expected[command] ?? /^nothing is expected of this command$/, line)
    if (command === 'operator-token') await shell.run(`export OPERATOR_TOKEN='${output}'`)
    ids = { gw: /^gw_\w+/m.exec(output)?.[0] ?? ids.gw, key: /^key_\w+/m.exec(output)?.[0] ?? ids.key }
  }
  t.same(seen.sort(), ['serve', ...Object.keys(expected)].sort())
})

t.test("the README's table of calls is the contract's", async (t) => {
  const { app } = await startService(t)
  const contract = operationsOf(contractOf(app)).map(({ name, operation }) => {
    const [needs] = operation.security
    return `${name}: ${needs?.['operator']?.[0] ?? (needs ? 'a gateway credential' : 'nothing')}`
  })
  const table = [...sectionOf('API').matchAll(/^\| `([A-Z]+ [^`]+)` \| ([^|]+) \|/gm)].map(([, call, needs]) => `${call}: ${needs!.replaceAll('`', '')}`)
  t.same(table.sort(), contract.sort())
})

t.test("the README's settings are the program's", async (t) => {
  t.ok(README === withSettings(README), 'the table of settings is up to date: run npm run docs')
})

t.test('every npm script that the README names is there', async (t) => {
  const { scripts } = JSON.parse(readFileSync(join(PACKAGE_ROOT, 'package.json'), 'utf8')) as { scripts: Record<string, string> }
  const named = new Set([...README.matchAll(/npm (?:run )?([a-z]+)/g)].map((match) => match[1]!).filter((name) => name !== 'ci'))
  t.same([...named].filter((name) => !scripts[name]), [])
  t.same(Object.keys(scripts).filter((name) => !named.has(name) && name !== 'build'), [], 'and every script is named')
})

t.test('every file that a page names is there', async (t) => {
  const folder = join(PACKAGE_ROOT, 'docs')
  const docs = existsSync(folder) ? readdirSync(folder, { recursive: true, encoding: 'utf8' }).filter((file) => file.endsWith('.md')) : []
  for (const page of ['README.md', ...docs.map((file) => join('docs', file))]) {
    const targets = linksOf(readFileSync(join(PACKAGE_ROOT, page), 'utf8'))
    const broken = targets.filter((target) => !existsSync(join(PACKAGE_ROOT, dirname(page), target)))
    t.same(broken, [], `${page} links to what is there`)
  }
})

/** A service in a process of its own, a shell beside it, and what `npm start` would print. */
async function served(t: Test) {
  const database = await createDatabase(t)
  const environment = testEnvironment(database)
  const [, url = ''] = await start(t, ['serve'], { env: { ...environment, PORT: '0' } }).line(/listening at (http:\/\/[\d.:]+)/)
  const operatorToken = await signOperatorToken(loadConfig(environment), { org: ORG, scopes: SCOPES, subject: 'newcomer', ttlSeconds: 600 })
  const answer = await fetch(`${url}/v1/gateways`, {
    method: 'POST',
    headers: { authorization: `Bearer ${operatorToken}`, 'content-type': 'application/json' },
    body: JSON.stringify({ name: 'walk' }),
  })
  const { plaintext_key: gatewayCredential } = (await answer.json()) as { plaintext_key: string }
  return { url, database, environment, shell: openShell(t), operatorToken, gatewayCredential }
}

function sectionOf(heading: string): string {
  const [, after] = README.split(`\n## ${heading}\n`)
  if (after === undefined) throw new Error(`the README has no section ${heading}`)
  return after.split('\n## ')[0]!
}

/** The lines of a section's first block of bash. */
function commandsUnder(heading: string): string[] {
  return /```bash\n([\s\S]*?)```/.exec(sectionOf(heading))![1]!.split('\n').filter(Boolean)
}

/** Targets of relative links, without what leads within a page; links in examples are none. */
function linksOf(markdown: string): string[] {
  const prose = markdown.replace(/^```[\s\S]*?^```/gm, '').replace(/`[^`\n]*`/g, '')
  return [...prose.matchAll(/\]\(([^)\s]+)\)/g)].map((match) => match[1]!.split('#')[0]!).filter((target) => target !== '' && !/^[a-z]+:/.test(target))
}
