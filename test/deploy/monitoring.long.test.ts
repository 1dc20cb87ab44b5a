/** Alerts, dashboard and runbooks, held against the metrics of a real service; by a real Prometheus where there is one. */

import { spawnSync } from 'node:child_process'
import { mkdirSync, readdirSync, readFileSync, symlinkSync, writeFileSync } from 'node:fs'
import { basename, join } from 'node:path'
import t from 'tap'
import { parse } from 'yaml'
import { freePort } from '../../src/db/embedded/free-port.js'
import { PACKAGE_ROOT } from '../../src/package-root.js'
import { createDatabase } from '../helpers/database.js'
import { eventually } from '../helpers/eventually.js'
import { postgresPrograms } from '../helpers/postgres.js'
import { isInstalled, PATH, runProgram, temporaryFolder } from '../helpers/programs.js'
import { startService } from '../helpers/service.js'
import { openShell } from '../helpers/shell.js'

const FOLDER = join(PACKAGE_ROOT, 'deploy', 'monitoring')
const RUNBOOKS = join(PACKAGE_ROOT, 'docs', 'runbooks')
const read = (...path: string[]) => readFileSync(join(...path), 'utf8')

interface Alert {
  readonly alert: string
  readonly expr: string
  readonly labels: { readonly severity: string }
  readonly annotations: { readonly summary: string; readonly runbook_url: string }
}
interface Panel {
  readonly title: string
  readonly targets?: readonly { readonly expr: string; readonly legendFormat: string }[]
}
const alerts: Alert[] = parse(read(FOLDER, 'alerts.yml')).groups.flatMap(({ rules }: any) => rules)
const dashboard = JSON.parse(read(FOLDER, 'dashboard.json')) as { panels: Panel[] }
const queries = dashboard.panels.flatMap(({ title, targets = [] }) => targets.map(({ expr, legendFormat }) => ({ title, expr, legendFormat })))
const runbooks = readdirSync(RUNBOOKS).filter((file) => file !== 'README.md')

t.test('every alert has a runbook of its name, and says where it is', async (t) => {
  t.ok(alerts.length > 15)
  t.same(runbooks.sort(), alerts.map(({ alert }) => `${alert}.md`).sort())
  for (const { alert, labels, annotations } of alerts) {
    t.ok(['page', 'ticket'].includes(labels.severity), alert)
    t.equal(annotations.runbook_url, `docs/runbooks/${alert}.md`)
    t.match(read(RUNBOOKS, `${alert}.md`), new RegExp(`^# ${alert}\\n[^]*\\n## Look\\n[^]*\\n\`\`\`bash\\n[^]*\\n## Mend\\n`), 'it says what it means, where to look, and what to do')
  }
  const listed = [...read(RUNBOOKS, 'README.md').matchAll(/^\| \[(\w+)\]\(\1\.md\) \| (\w+) \|$/gm)].map(([, name, severity]) => `${name} ${severity}`)
  t.same(listed, alerts.map(({ alert, labels }) => `${alert} ${labels.severity}`), 'the list of them is complete')
  const tested = new Set([...read(FOLDER, 'alerts.test.yml').matchAll(/alertname: (\w+)/g)].map(([, name]) => name))
  t.same([...tested].sort(), alerts.map(({ alert }) => alert).sort(), 'and each is tried')
})

t.test('promtool takes the alerts, and their unit tests pass', { skip: !isInstalled('promtool') && 'promtool is not installed' }, async (t) => {
  for (const args of [['check', 'rules', 'alerts.yml'], ['test', 'rules', 'alerts.test.yml']]) {
    const { status, stdout, stderr } = spawnSync('promtool', args, { cwd: FOLDER, env: { PATH }, encoding: 'utf8' })
    t.equal(status, 0, args.join(' '), { said: `${stdout}${stderr}` })
  }
})

t.test('every metric, every label and every value in alerts and dashboard is one of the service', async (t) => {
  const { url } = await usedService()
  const metrics = await textOf(`${url}/metrics`)
  const labels = labelsOf(metrics)
  const expressions = [...alerts.map(({ alert, expr }) => ({ of: alert, expr })), ...queries.map(({ title, expr }) => ({ of: title, expr }))]
  const named = new Set<string>()
  for (const { of, expr } of expressions) {
    const [selectors, groups] = [selectorsOf(expr), [...expr.matchAll(/\bby \(([^)]*)\)/g)].flatMap(([, names]) => names!.split(/, */))]
    t.ok(selectors.length > 0, of)
    const ofQuery = new Set<string>()
    for (const { metric, matchers } of selectors) {
      named.add(metric.replace(/_(bucket|count|sum)$/, ''))
      const known = metric === 'up' ? new Set(TARGET) : labels.get(metric)
      t.ok(known, `${of}: ${metric}`)
      for (const label of known ?? []) ofQuery.add(label)
      for (const { label, values } of matchers) {
        t.ok(known?.has(label) || TARGET.includes(label), `${of}: ${metric} has ${label}`)
        for (const value of values) t.ok(hasValue(metrics, metric, label, value), `${of}: ${label} can be ${value}`)
      }
    }
    for (const label of groups) t.ok(ofQuery.has(label), `${of}: by ${label}`)
  }
  for (const { title, expr, legendFormat } of queries)
    for (const [, label] of legendFormat.matchAll(/\{\{(\w+)\}\}/g)) t.ok(expr.includes('by (') ? new RegExp(`by \\([^)]*\\b${label}\\b`).test(expr) : TARGET.includes(label!), `${title}: the legend has ${label}`)
  const ours = [...metrics.matchAll(/^# TYPE (mecha_keys_\w+)/gm)].map(([, name]) => name!)
  t.same(ours.filter((name) => !named.has(name)), [], 'and nothing that the service measures is left out')
})

t.test('a real Prometheus finds something for every panel, and no alert while all is well', { skip: !isInstalled('prometheus') && 'prometheus is not installed' }, async (t) => {
  const { url } = await usedService()
  const folder = temporaryFolder(t)
  const port = await freePort()
  const config = read(FOLDER, 'prometheus.yml').replace('127.0.0.1:8080', new URL(url).host).replace('scrape_interval: 15s', 'scrape_interval: 500ms\n  evaluation_interval: 1s')
  writeFileSync(join(folder, 'prometheus.yml'), config)
  writeFileSync(join(folder, 'alerts.yml'), read(FOLDER, 'alerts.yml'))
  await runProgram(t, 'prometheus', [`--config.file=${folder}/prometheus.yml`, `--storage.tsdb.path=${folder}/data`, `--web.listen-address=127.0.0.1:${port}`, '--log.level=error'], port)
  await eventually(async () => (await fetch(`http://127.0.0.1:${port}/-/ready`)).ok)
  const ask = async (path: string) => (JSON.parse(await textOf(`http://127.0.0.1:${port}/api/v1/${path}`)) as { data: any }).data
  const found = (expr: string) => ask(`query?query=${encodeURIComponent(expr)}`).then(({ result }) => (result as { value: [number, string] }[]).map(({ value }) => value[1]))
  await eventually(async () => Number((await found('count_over_time(mecha_keys_build_info[1m])'))[0] ?? 0) >= 4)
  for (const { title, expr } of queries) {
    const filled = expr.replaceAll('$__rate_interval', '1m').replaceAll('$instance', '.*')
    t.ok((await found(filled)).length > 0, `${title}: ${filled}`)
  }
  await eventually(async () => (await ask('rules')).groups[0]?.rules.every(({ health }: any) => health === 'ok'))
  const { groups } = await ask('rules')
  t.equal(groups[0].rules.length, alerts.length)
  // An alert fires at once if it has no "for": those are the ones that a healthy service must never be near.
  t.same(groups[0].rules.filter(({ state }: any) => state === 'firing').map(({ name }: any) => name), [])
})

t.test('the commands of every runbook run', { skip: !postgresPrograms() && 'PostgreSQL with its programs is not installed' }, async (t) => {
  const { url, database } = await usedService()
  const bin = join(temporaryFolder(t), 'bin')
  mkdirSync(bin)
  symlinkSync(join(PACKAGE_ROOT, 'dist', 'src', 'main.js'), join(bin, 'mecha-keys'))
  const shell = openShell(t)
  const settings = { ...environment, DATABASE_URL: database.control, MIGRATE_DATABASE_URL: database.owner, MECHA_KEYS_URL: url }
  for (const [name, value] of Object.entries(settings)) if (value !== undefined) await shell.run(`export ${name}='${value}'`)
  await shell.run(`export OIDC_ISSUER=https://login.example.com/ PATH=${bin}:${postgresPrograms()}:$PATH; set -o pipefail`)
  for (const file of runbooks)
    for (const [, block] of read(RUNBOOKS, file).matchAll(/```bash\n([^]*?)```/g))
      for (const line of block!.trim().split('\n')) {
        const { output, code } = await shell.run(line)
        t.equal(code, 0, `${basename(file, '.md')}: ${line}`, { output })
        t.not(output, '', 'and says something')
        t.notMatch(output, /ERROR/)
      }
})

t.test('what the runbooks quote of the log, and where they lead, is there', async (t) => {
  const sources = readdirSync(join(PACKAGE_ROOT, 'src'), { recursive: true, encoding: 'utf8' }).filter((file) => file.endsWith('.ts')).map((file) => read(PACKAGE_ROOT, 'src', file)).join()
  let quotes = 0
  for (const file of runbooks) {
    const page = read(RUNBOOKS, file)
    for (const [, line] of page.matchAll(/[Ii]n the log[: ]+`([^`]+)`/g)) {
      quotes++
      t.ok(sources.includes(line!), `${file}: ${line}`)
    }
    for (const [, link, anchor] of page.matchAll(/\]\(([^)#]+)(?:#([^)]+))?\)/g)) {
      const target = read(RUNBOOKS, link!)
      if (anchor) t.ok(target.split('\n').some((line) => line.startsWith('#') && line.replace(/^#+ /, '').toLowerCase().replace(/[^a-z0-9 -]/g, '').replaceAll(' ', '-') === anchor), `${file}: ${link}#${anchor}`)
    }
  }
  t.ok(quotes >= 3)
})

/** Labels that Prometheus gives to whatever it reads. */
const TARGET = ['job', 'instance']
const environment = { ROOT_SECRETS: 'a'.repeat(43) }

let ofThisFile: ReturnType<typeof startUsed> | undefined

/** One service for all of these tests, on a port, for which every metric has a sample. */
function usedService() {
  return (ofThisFile ??= startUsed())
}

async function startUsed() {
  const database = await createDatabase(t)
  const service = await startService(t, environment, database, { processMetrics: true })
  const url = await service.app.listen({ port: 0, host: '127.0.0.1' })
  const { key, plaintext_key } = await service.issue()
  const gateway = await service.gateway()
  // Known, forged, good as something else, and refused: as a key and as a credential.
  for (const shown of [plaintext_key, plaintext_key, 'x', gateway]) await service.verify(shown)
  for (const token of ['none', plaintext_key]) await service.call('POST', '/v1/verify', { token, body: { key: plaintext_key } })
  await service.call('POST', `/v1/keys/${key.id}/revoke`, { token: await service.token(), headers: { prefer: 'wait=10' } })
  await service.call('GET', '/readyz')
  await eventually(async () => (await textOf(`${url}/metrics`)).includes('mecha_keys_keys{'))
  return { url, database }
}

async function textOf(url: string): Promise<string> {
  return (await fetch(url)).text()
}

/** The labels of each metric that has a sample. */
function labelsOf(metrics: string): Map<string, Set<string>> {
  const labels = new Map<string, Set<string>>()
  for (const [, name, inside = ''] of metrics.matchAll(/^(\w+)(?:\{(.*)\})? \S+$/gm)) labels.set(name!, new Set([...inside.matchAll(/(\w+)="/g)].map(([, label]) => label!)))
  return labels
}

/** The metrics of an expression, with what is asked of their labels. */
function selectorsOf(expr: string) {
  return [...expr.matchAll(/\b(up|(?:mecha_keys|process|nodejs)_\w+)(?:\{([^}]*)\})?/g)].map(([, metric, inside = '']) => ({
    metric: metric!,
    matchers: [...inside.matchAll(/(\w+)(?:=~|!=|=)"([^"]*)"/g)].map(([, label, values]) => ({ label: label!, values: TARGET.includes(label!) ? [] : values!.split('|') })),
  }))
}

/** Values that a healthy service does not show are those of the documentation. */
function hasValue(metrics: string, metric: string, label: string, value: string): boolean {
  if (label === 'code') return readdirSync(join(PACKAGE_ROOT, 'docs', 'errors')).includes(`${value}.md`)
  if (label === 'status') return /^[1-5]\d\d$/.test(value)
  if (label === 'complete') return ['true', 'false'].includes(value)
  return new RegExp(`^${metric}\\{.*\\b${label}="${value}"`, 'm').test(metrics)
}
