/** `serve`: the deployment's service, or the embedded default with a quickstart to paste. */

import { signOperatorToken } from '../control/operators/builtin-issuer.js'
import { SCOPES } from '../control/operators/scopes.js'
import { call } from './client.js'
import { loadConfig, processEnvironment, type Settings } from '../config.js'
import { createGateway } from '../control/gateways/create.js'
import { isLocal, keptSecret, startLocal, withLocalFiles } from './local.js'
import { renderQuickstart } from './quickstart.js'
import { serve } from '../server/serve.js'
import { migrateDatabase } from './migrate.js'
import { userName } from './shared.js'
import { commandLine, withControlDeps } from './with-database.js'

/** The organization of the quickstart that `npm start` prints. */
const QUICKSTART_ORG = 'acmecorp'
const DAY = 86_400

export async function runServe(): Promise<void> {
  const environment = processEnvironment()
  if (!isLocal(environment)) return serve(loadConfig(environment), { environment })
  // Wrong settings are reported before a database is started for them.
  loadConfig(withLocalFiles(environment))
  const local = await startLocal(environment)
  try {
    const config = loadConfig(local.environment)
    await migrateDatabase(config, true)
    await serve(config, {
      environment,
      onListening: async (url) => void process.stdout.write(await quickstartOf(config, url)),
      onClosed: () => local.database.stop(),
    })
  } catch (error) {
    await local.database.stop()
    throw error
  }
}

async function quickstartOf(config: Settings, url: string): Promise<string> {
  const operatorToken = await signOperatorToken(config, { org: QUICKSTART_ORG, scopes: SCOPES, subject: userName(), ttlSeconds: DAY })
  const gatewayCredential = await keptSecret(processEnvironment(), 'gateway-credential', {
    isGood: (credential) =>
      call({ MECHA_KEYS_URL: url }, { method: 'POST', path: '/v1/verify', body: { key: '' }, credential }).then(() => true, () => false),
    make: () => withControlDeps(config, async (parts) => (await createGateway(parts, commandLine(QUICKSTART_ORG), 'npm start')).plaintext),
  })
  return renderQuickstart({ url, operatorToken, gatewayCredential })
}
