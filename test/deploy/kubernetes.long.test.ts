/** The Kustomize base: held against the settings and the probes as they are, against Kubernetes' own schemas, and run. */

import { execFileSync, spawnSync } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { readdirSync, readFileSync, realpathSync, writeFileSync } from 'node:fs'
import { basename, join, relative } from 'node:path'
import { sql } from 'kysely'
import t from 'tap'
import { parse, parseAllDocuments } from 'yaml'
import { loadConfig, settingsTable, type Environment } from '../../src/config.js'
import { PACKAGE_ROOT } from '../../src/package-root.js'
import { LAST_STEPS_MS } from '../../src/server/serve.js'
import { createDatabase } from '../helpers/database.js'
import { eventually } from '../helpers/eventually.js'
import { run, start } from '../helpers/process.js'
import { isInstalled, PATH, temporaryFolder } from '../helpers/programs.js'

const FOLDER = join(PACKAGE_ROOT, 'deploy', 'kubernetes')
const PAGE = readFileSync(join(FOLDER, 'README.md'), 'utf8')
/** Oldest and newest release of Kubernetes that the manifests are checked against. */
const RELEASES = ['1.31.0', '1.37.0']
const lacksKubectl = !isInstalled('kubectl') && 'kubectl is not installed'

const LISTENING = /listening at (http:\/\/127\.0\.0\.1:\d+)/

const manifests: any[] = readdirSync(join(FOLDER, 'base'))
  .filter((file) => file.endsWith('.yaml') && file !== 'kustomization.yaml')
  .flatMap((file) => parseAllDocuments(readFileSync(join(FOLDER, 'base', file), 'utf8')).map((document) => document.toJS()))
const ofKind = (kind: string) => manifests.filter((one) => one.kind === kind)
const named = (kind: string, name: string) => ofKind(kind).find((one) => one.metadata.name === name)
const PLANES = ['control', 'runtime'] as const
const workloads = [...ofKind('Deployment'), ...ofKind('Job')]
const podOf = (workload: any) => workload.spec.template.spec
const containerOf = (workload: any) => podOf(workload).containers[0]
const shared = Object.fromEntries(readFileSync(join(FOLDER, 'base', 'settings.env'), 'utf8').split('\n').filter((line) => line && !line.startsWith('#')).map((line) => line.split('=')))
const example = parse(readFileSync(join(FOLDER, 'example', 'kustomization.yaml'), 'utf8'))
const literals = Object.fromEntries(example.configMapGenerator[0].literals.map((line: string) => /^(\w+)=(.*)$/.exec(line)!.slice(1)))

t.test('there is what the base promises, and no more', async (t) => {
  t.same(manifests.map(({ kind, metadata }) => `${kind} ${metadata.name}`).sort(), [
    'Deployment mecha-keys-control', 'Deployment mecha-keys-runtime', 'Job mecha-keys-migrate', 'NetworkPolicy mecha-keys', 'NetworkPolicy mecha-keys-control',
    'NetworkPolicy mecha-keys-runtime', 'PodDisruptionBudget mecha-keys-control', 'PodDisruptionBudget mecha-keys-runtime', 'Service mecha-keys-control', 'Service mecha-keys-runtime',
  ])
})

t.test('every name in an environment, in the settings and on the page is a setting, and no secret is a value', async (t) => {
  const names = settingsTable().flatMap(({ name, secret }) => (secret ? [`${name}_FILE`] : [name]))
  const given = [...workloads.flatMap((workload) => (containerOf(workload).env as { name: string }[]).map(({ name }) => name)), ...Object.keys(shared), ...Object.keys(literals)]
  t.ok(given.length > 10)
  t.same(given.filter((name) => !names.includes(name)), [])
  const inProse = [...[PAGE, ...readdirSync(join(FOLDER, 'base')).map((file) => readFileSync(join(FOLDER, 'base', file), 'utf8'))].join().matchAll(/\b[A-Z]{2,}(?:_[A-Z]+)+\b/g)].map(([name]) => name)
  // A Service puts its own into an environment, unless it is told not to.
  const known = [...names, ...settingsTable().map(({ name }) => name), 'MECHA_KEYS_CONTROL_PORT']
  t.same([...new Set(inProse)].filter((name) => !known.includes(name)), [])
})

t.test('each pod has the secrets that it needs, as files that its group can read', async (t) => {
  const secrets = Object.fromEntries(workloads.map((workload) => [workload.metadata.name, podOf(workload).volumes[0].projected.sources.map(({ secret }: any) => secret.name)]))
  t.same(secrets, {
    'mecha-keys-control': ['mecha-keys-control', 'mecha-keys-root-secrets'],
    'mecha-keys-runtime': ['mecha-keys-runtime', 'mecha-keys-root-secrets'],
    'mecha-keys-migrate': ['mecha-keys-owner', 'mecha-keys-control', 'mecha-keys-runtime'],
  })
  for (const workload of workloads) {
    const { volumes, securityContext } = podOf(workload)
    t.match(securityContext, { runAsUser: 1000, fsGroup: 1000 })
    t.equal(volumes[0].projected.defaultMode, 0o440, 'for the group, and for nobody else')
    t.same(containerOf(workload).volumeMounts, [{ name: volumes[0].name, mountPath: '/run/secrets/mecha-keys', readOnly: true }])
    const files = filesOf(secrets[workload.metadata.name])
    for (const { name, value } of containerOf(workload).env)
      if (name.endsWith('_FILE')) t.ok(files.includes(value.replace('/run/secrets/mecha-keys/', '')), `${workload.metadata.name} ${name}`)
  }
})

t.test('a pod can do nothing that it does not need', async (t) => {
  for (const workload of workloads) {
    t.match(podOf(workload), { automountServiceAccountToken: false, enableServiceLinks: false, securityContext: { runAsNonRoot: true, seccompProfile: { type: 'RuntimeDefault' } } })
    t.same(containerOf(workload).securityContext, { allowPrivilegeEscalation: false, readOnlyRootFilesystem: true, capabilities: { drop: ['ALL'] } })
    t.ok(containerOf(workload).resources.limits.memory)
  }
})

t.test('probes and time to end fit the settings', async (t) => {
  for (const plane of PLANES) {
    const config = loadConfig({ ...shared, PLANES: plane })
    const deployment = named('Deployment', `mecha-keys-${plane}`)
    const { livenessProbe, readinessProbe, startupProbe } = containerOf(deployment)
    t.same([startupProbe, livenessProbe, readinessProbe].map(({ httpGet }) => httpGet), ['/livez', '/livez', '/readyz'].map((path) => ({ path, port: 'http' })), 'no restart for the sake of the database')
    t.ok(podOf(deployment).terminationGracePeriodSeconds * 1000 > (config.DRAIN_DELAY + config.SHUTDOWN_TIMEOUT) * 1000 + LAST_STEPS_MS)
    t.ok(config.DRAIN_DELAY > 0)
    if (plane === 'runtime') t.ok(readinessProbe.periodSeconds * readinessProbe.failureThreshold > config.REVOCATION_MAX_STALENESS, 'what can be answered from memory is answered')
  }
})

t.test('what selects pods selects those of its plane, and a node can be drained of one of them', async (t) => {
  for (const plane of PLANES) {
    const { spec } = named('Deployment', `mecha-keys-${plane}`)
    const labels = { 'app.kubernetes.io/name': 'mecha-keys', 'app.kubernetes.io/component': plane }
    t.same(spec.template.metadata.labels, labels)
    t.same(spec.selector.matchLabels, labels)
    const service = named('Service', `mecha-keys-${plane}`)
    t.same(service.spec.selector, labels)
    t.equal(service.spec.ports[0].targetPort, containerOf(named('Deployment', `mecha-keys-${plane}`)).ports[0].name)
    t.equal(containerOf(named('Deployment', `mecha-keys-${plane}`)).ports[0].containerPort, loadConfig({}).PORT)
    const budget = named('PodDisruptionBudget', `mecha-keys-${plane}`).spec
    t.same(budget, { maxUnavailable: 1, unhealthyPodEvictionPolicy: 'IfHealthyBudget', selector: { matchLabels: labels } })
    t.ok(spec.replicas > budget.maxUnavailable)
    t.same(named('NetworkPolicy', `mecha-keys-${plane}`).spec.podSelector.matchLabels, labels)
  }
})

t.test('only who is let in comes in, and pods reach the database, names and the issuer', async (t) => {
  const { spec } = named('NetworkPolicy', 'mecha-keys')
  t.same(spec.podSelector.matchLabels, { 'app.kubernetes.io/name': 'mecha-keys' }, 'it is for every pod')
  for (const workload of workloads) t.equal(workload.spec.template.metadata.labels['app.kubernetes.io/name'], 'mecha-keys')
  t.same(spec.policyTypes, ['Ingress', 'Egress'])
  t.notOk(spec.ingress)
  const portsOf = (rules: any[] = []) => rules.flatMap(({ ports }) => ports.map(({ protocol, port }: any) => `${protocol} ${port}`))
  t.same(portsOf(spec.egress), ['UDP 53', 'TCP 53', 'TCP 5432'])
  for (const plane of PLANES) {
    const policy = named('NetworkPolicy', `mecha-keys-${plane}`).spec
    t.same(policy.ingress, [{ from: [{ namespaceSelector: { matchLabels: { [`reaches-mecha-keys-${plane}`]: 'true' } } }], ports: [{ protocol: 'TCP', port: 'http' }] }])
    t.ok(PAGE.includes(`reaches-mecha-keys-${plane}=true`))
    t.same(portsOf(policy.egress), plane === 'control' ? ['TCP 443'] : [])
  }
})

t.test('kubectl builds base and example, and Kubernetes\' schemas know every field of them', { skip: lacksKubectl || (!isInstalled('kubernetes-validate') && 'kubernetes-validate is not installed') }, async (t) => {
  for (const folder of ['base', 'example']) {
    const built = kubectl('kustomize', join(FOLDER, folder))
    const file = join(temporaryFolder(t), 'built.yaml')
    writeFileSync(file, built)
    for (const release of RELEASES) {
      const { status, stdout, stderr } = spawnSync('kubernetes-validate', ['--strict', '--kubernetes-version', release, file], { env: { PATH }, encoding: 'utf8' })
      t.equal(status, 0, `${folder} against ${release}`, { said: `${stdout}${stderr}` })
      t.equal(`${stdout}${stderr}`.match(/ passed for resource /g)?.length, manifests.length + 1, 'all of them, and the settings')
    }
    const documents = parseAllDocuments(built).map((document) => document.toJS())
    const settings = documents.find(({ kind }) => kind === 'ConfigMap')
    t.same(settings.data, folder === 'base' ? shared : { ...shared, ...literals })
    for (const { kind, spec } of documents) {
      if (kind === 'Deployment') t.equal(spec.template.spec.containers[0].envFrom[0].configMapRef.name, settings.metadata.name, 'a changed setting replaces the pods')
      if (folder === 'example' && spec?.template) t.equal(spec.template.spec.containers[0].image, 'registry.example.com/mecha-keys:0.1.0')
    }
  }
})

t.test('with autoscale there are as many pods of the runtime plane as there is work for, and PostgreSQL has connections for all of them', { skip: lacksKubectl || (!isInstalled('kubernetes-validate') && 'kubernetes-validate is not installed') }, async (t) => {
  const folder = temporaryFolder(t)
  const from = (name: string) => relative(realpathSync(folder), join(FOLDER, name))
  writeFileSync(join(folder, 'kustomization.yaml'), JSON.stringify({ ...example, resources: [from('base')], components: [from('autoscale')] }))
  const built = kubectl('kustomize', folder)
  const file = join(folder, 'built.yaml')
  writeFileSync(file, built)
  for (const release of RELEASES) t.equal(spawnSync('kubernetes-validate', ['--strict', '--kubernetes-version', release, file], { env: { PATH } }).status, 0, release)
  const documents = parseAllDocuments(built).map((document) => document.toJS())
  const [control, runtime] = PLANES.map((plane) => documents.find(({ kind, metadata }) => kind === 'Deployment' && metadata.name === `mecha-keys-${plane}`).spec)
  const { spec, metadata } = documents.find(({ kind }) => kind === 'HorizontalPodAutoscaler')
  t.match(metadata, { namespace: example.namespace, labels: { 'app.kubernetes.io/name': 'mecha-keys' } })
  t.same(spec.scaleTargetRef, { apiVersion: 'apps/v1', kind: 'Deployment', name: 'mecha-keys-runtime' })
  t.notOk('replicas' in runtime, 'nothing sets the number back')
  t.equal(spec.minReplicas, named('Deployment', 'mecha-keys-runtime').spec.replicas)
  t.equal(runtime.template.spec.containers[0].resources.requests.cpu, '1', 'what a process can use')
  const pool = loadConfig({}).DATABASE_POOL_SIZE
  const most = (spec.maxReplicas + runtime.strategy.rollingUpdate.maxSurge) * (pool + 1) + (control.replicas + control.strategy.rollingUpdate.maxSurge) * pool
  // Three of a hundred are kept for superusers.
  t.ok(most <= 97, `${most} connections`)
})

t.test("what stands in the manifests migrates an empty database and serves each plane, with the secrets that the page's commands make", { skip: lacksKubectl }, async (t) => {
  const database = await createDatabase(t, { empty: true })
  const folder = temporaryFolder(t)
  // As the page has it, but for what has to be reached from here, and for the cluster.
  const suffix = randomBytes(4).toString('hex')
  const { host, pathname } = new URL(database.owner)
  for (const login of ['control', 'runtime']) t.teardown(() => sql`DROP ROLE IF EXISTS ${sql.id(`mecha_keys_${login}_login_${suffix}`)}`.execute(database.db))
  const [files, secrets] = blocksOf('The first time')
  const made = files!.replace(/'postgres:[^']*mecha_keys_owner[^']*'/, `'${database.owner}'`).replaceAll('_login:…@postgres.example.com:5432/mecha_keys', `_login_${suffix}:${randomBytes(9).toString('hex')}@${host}${pathname}`)
  t.notMatch(made, /…|example\.com/)
  bash(folder, made)
  t.same(readdirSync(folder).sort(), Object.values(secretFiles()).flat().sort())
  const mounted = temporaryFolder(t)
  for (const line of secrets!.split('\n').filter((one) => one.includes(' secret generic ')))
    for (const [file, content] of Object.entries<string>(parse(bash(folder, `${line} --dry-run=client --output yaml`)).data)) writeFileSync(join(mounted, file), Buffer.from(content, 'base64'), { mode: 0o400 })

  const environmentOf = (workload: any): Environment => ({
    ...(workload.kind === 'Deployment' && { ...shared, ...literals }),
    ...Object.fromEntries(containerOf(workload).env.map(({ name, value }: any) => [name, value.replace('/run/secrets/mecha-keys', mounted)])),
    PORT: '0',
  })
  // All of them begin at once. What ends before the Job is done is started again, as the cluster does it.
  const startPlane = (plane: string) => {
    const deployment = named('Deployment', `mecha-keys-${plane}`)
    return start(t, containerOf(deployment).args, { env: environmentOf(deployment) })
  }
  const first = PLANES.map((plane) => {
    const process = startPlane(plane)
    return { plane, process, url: process.line(LISTENING).then((match) => match[1], () => undefined) }
  })
  const job = named('Job', 'mecha-keys-migrate')
  t.match(await run(t, containerOf(job).args, { env: environmentOf(job) }), { code: 0, stdout: /^applied 0001_roles, / })
  for (const { plane, ...one } of first) {
    const survivor = await one.url
    const process = survivor ? one.process : startPlane(plane)
    const url = survivor ?? (await process.line(LISTENING))[1]!
    const { livenessProbe, readinessProbe } = containerOf(named('Deployment', `mecha-keys-${plane}`))
    for (const { httpGet } of [livenessProbe, readinessProbe]) await eventually(async () => (await fetch(url + httpGet.path)).status === 200)
    t.notMatch(process.stdout(), /is no setting of mecha-keys/, plane)
  }
})

t.test("the page's other commands name what is there", async (t) => {
  const commands = [...PAGE.matchAll(/```bash\n([^]*?)```/g)].flatMap(([, block]) => block!.split('\n'))
  const references = commands.flatMap((line) => [...line.matchAll(/\b(deployment|job)[/ ](mecha-keys-[a-z]+)/g)].map(([, kind, name]) => `${kind} ${name}`))
  t.ok(references.length >= 6)
  t.same(references.filter((one) => !workloads.some(({ kind, metadata }) => one === `${kind.toLowerCase()} ${metadata.name}`)), [])
  for (const line of commands) for (const [, namespace] of line.matchAll(/(?:--namespace|create namespace) (\S+)/g)) t.equal(namespace, example.namespace, line)
  for (const [, file] of PAGE.matchAll(/\]\((base\/[a-z.-]+)\)/g)) t.ok(readdirSync(join(FOLDER, 'base')).includes(basename(file!)), file!)
})

/** The files of each Secret that the page makes. */
function secretFiles(): Record<string, string[]> {
  return Object.fromEntries([...PAGE.matchAll(/^kubectl create secret generic (\S+) .*--from-file=(\S+)$/gm)].map(([, name, file]) => [name!, [file!]]))
}

function filesOf(secrets: string[]): string[] {
  return secrets.flatMap((name) => secretFiles()[name] ?? [])
}

/** The blocks of commands under a heading of the page. */
function blocksOf(heading: string): string[] {
  const [, section = ''] = PAGE.split(`\n## ${heading}\n`)
  return [...section.split('\n## ')[0]!.matchAll(/```bash\n([^]*?)```/g)].map(([, block]) => block!.trim())
}

function kubectl(...args: string[]): string {
  return execFileSync('kubectl', args, { env: { PATH }, encoding: 'utf8' })
}

function bash(folder: string, commands: string): string {
  return execFileSync('bash', ['-euc', commands], { cwd: folder, env: { PATH, HOME: folder }, encoding: 'utf8', stdio: ['ignore', 'pipe', 'inherit'] })
}
