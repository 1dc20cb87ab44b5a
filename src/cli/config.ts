/** `config`: the settings in effect. It needs neither the service nor a database. */

import { describeConfig, loadConfig, processEnvironment, suspectNames } from '../config.js'
import { isLocal, withLocalFiles } from './local.js'
import { print } from './shared.js'

export async function runConfig({ json }: { json?: true }): Promise<void> {
  const environment = processEnvironment()
  const effective = isLocal(environment) ? withLocalFiles(environment) : environment
  loadConfig(effective)
  const settings = describeConfig(effective)
  const width = Math.max(...Object.keys(settings).map((name) => name.length))
  print(json, settings, () =>
    Object.entries(settings).map(([name, { value, from }]) => `${name.padEnd(width)}  ${value ?? '-'}  (${from})`),
  )
  for (const { name, meant } of suspectNames(environment))
    process.stderr.write(`${name} is no setting of mecha-keys${meant ? `: did you mean ${meant}?` : ''}\n`)
}
