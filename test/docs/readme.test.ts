import { existsSync, readdirSync, readFileSync, statSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { createRemoteJWKSet, jwtVerify } from 'jose'
import t, { type Test } from 'tap'
import { signOperatorToken } from '../../src/control/operators/builtin-issuer.js'
import { SCOPES } from '../../src/control/operators/scopes.js'
import { loadConfig } from '../../src/config.js'
import { PACKAGE_ROOT } from '../../src/package-root.js'
import { QUICKSTART, renderQuickstart } from '../../src/cli/quickstart.js'
import { contractOf, operationsOf } from '../helpers/contract.js'
import { createDatabase } from '../helpers/database.js'
import { start } from '../helpers/process.js'
import { openShell } from '../helpers/shell.js'
import { testEnvironment } from '../helpers/service.js'
import { withSettings } from '../tools/documents.js'

const README = readFileSync(join(PACKAGE_ROOT, 'README.md'), 'utf8')
const ORG = 'acmecorp'
/** The same program without the second that npx takes to find it. */
const NPX = `npx() { shift; ${process.execPath} dist/src/main.js "$@"; }`

t.test("the README's quickstart is the one that npm start prints", async (t) => {
  const lines = commandsUnder('Quickstart')
  t.same(lines.slice(3), QUICKSTART.flatMap(([what, command]) => [`# ${what}`, command]))
  const filled = { url: 'http://127.0.0.1:8080', operatorToken: 'eyJ…', gatewayCredential: 'mgw_…' }
  t.same(renderQuickstart(filled).trim().split('\n').slice(2), lines)
})

t.test("the README's quickstart works as it stands, and ends with a refusal", async (t) => {
  const { url, shell, operatorToken, gatewayCredential } = await served(t)
  const filled: Record<string, string> = { MECHA_KEYS_URL: url, OPERATOR_TOKEN: operatorToken, GATEWAY_CREDENTIAL: gatewayCredential }
  await shell.run(NPX)
  const answers: { output: string; code: number }[] = []
  for (const line of commandsUnder('Quickstart').filter((one) => !one.startsWith('#'))) {
    const name = /^export (\w+)=/.exec(line)?.[1] ?? ''
    const answer = await shell.run(name in filled ? `export ${name}=${filled[name]}` : line)
    if (!(name in filled)) answers.push(answer)
  }
  const [issued, verdict, list, revocation, refusal] = answers
  t.equal(answers.length, 5)
  t.match(issued, { code: 0, output: /^key_\w+$/ }, 'the plaintext is in the variable, and not on the screen')
  const id = issued!.output
  t.match(JSON.parse(verdict!.output), { valid: true, key_id: id, mecha: { handle: 'sales^acmecorp' } })
  t.match(list!.output, new RegExp(`^${id}  active    sales\\^acmecorp  first$`))
  t.match(JSON.parse(revocation!.output), { mecha: 'sales^acmecorp', revoked: [id] })
  t.same(refusal, { code: 1, output: 'not valid: revoked' })

  const rows = renderQuickstart({ url, operatorToken, gatewayCredential }).split('\n').map((line) => Math.max(1, Math.ceil(line.length / 80)))
  t.ok(rows.reduce((sum, row) => sum + row) <= 24, `fits a screen of 80 by 24: ${rows.join('+')}`)
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
  await shell.run(`export MECHA_KEYS_URL=${url} MECHA_KEY=${plaintext_key}`)
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
  await shell.run(NPX)

  const expected: Record<string, RegExp> = {
    'migrate': /^nothing to apply$/,
    'config': /^ROOT_SECRETS +\*{8} +\(ROOT_SECRETS\)$/m,
    'root-secrets status': /^\w+ +newest +tags \d+ living keys/,
    'signing-keys list': /^[\w-]{43} +EdDSA +signing +signs since \S+$/,
    'signing-keys rotate': /^[\w-]{43} +EdDSA +next +published, signs from \S+$/m,
    'events expire': /^EVENTS_RETENTION is not set: every event is kept$/m,
    'events': /^\{"id":"\d+",.*"type":"signing_key\.created"/,
    'crew reserve': /^acmecorp is reserved for acmecorp$/,
    'organization erase': /^the database has nothing of globex$/,
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
    const command = /npx mecha-keys ([a-z-]+(?: (?:status|create|list|reserve|revoke|rotate|expire|erase)\b)?)/.exec(line)![1]!
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
  const contract = operationsOf(contractOf()).map(({ name, operation }) => {
    const [needs] = operation.security
    return `${name}: ${operation['x-scope'] ?? (needs ? 'a gateway credential' : 'nothing')}`
  })
  const table = [...sectionOf('API').matchAll(/^\| `([A-Z]+ [^`]+)` \| ([^|]+) \|/gm)].map(([, call, needs]) => `${call}: ${needs!.replaceAll('`', '')}`)
  t.same(table.sort(), contract.sort())
})

t.test("the README's settings are the program's", async (t) => {
  t.ok(README === withSettings(README), 'the table of settings is up to date: run npm run docs')
})

t.test('npm start, like whatever builds first, leaves alone what is built', async (t) => {
  const built = join(PACKAGE_ROOT, 'dist', 'src', 'main.js')
  const before = statSync(built)
  const shell = openShell(t)
  t.match(await shell.run('npm run --silent build'), { code: 0, output: '' })
  t.equal(statSync(built).mtimeMs, before.mtimeMs)
  t.equal(statSync(built).mode & 0o111, 0o111, 'and it can be run')
  const { scripts } = JSON.parse(readFileSync(join(PACKAGE_ROOT, 'package.json'), 'utf8')) as { scripts: Record<string, string> }
  t.match(scripts['build'], /^tsc -b /, 'which looks at times first, where tsc -p checks every type again')
})

t.test('every npm script that the README names is there', async (t) => {
  const { scripts } = JSON.parse(readFileSync(join(PACKAGE_ROOT, 'package.json'), 'utf8')) as { scripts: Record<string, string> }
  const named = new Set([...README.matchAll(/npm (?:run )?([a-z:]+)/g)].map((match) => match[1]!).filter((name) => !['ci', 'pack'].includes(name)))
  t.same([...named].filter((name) => !scripts[name]), [])
  t.same(Object.keys(scripts).filter((name) => !named.has(name) && !['build', 'prepack'].includes(name)), [], 'and every script is named')
})

t.test('every file that a page names is there', async (t) => {
  const pages = ['docs', 'deploy'].flatMap((folder) => readdirSync(join(PACKAGE_ROOT, folder), { recursive: true, encoding: 'utf8' }).filter((file) => file.endsWith('.md')).map((file) => join(folder, file)))
  for (const page of ['README.md', 'CONTRIBUTING.md', 'CHANGELOG.md', 'SECURITY.md', ...pages]) {
    const text = readFileSync(join(PACKAGE_ROOT, page), 'utf8')
    const broken = linksOf(text).filter((target) => !existsSync(join(PACKAGE_ROOT, dirname(page), target)))
    t.same(broken, [], `${page} links to what is there`)
    const named = [...text.matchAll(/`((?:src|test|bench(?!\/results)|migrations(?!\/NNNN))\/[\w./-]+)`/g)].map((match) => match[1]!)
    t.same(named.filter((path) => !existsSync(join(PACKAGE_ROOT, path))), [], `${page} names what is there`)
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
