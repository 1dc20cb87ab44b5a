/** The control plane, and what it depends on. */

import type { Kysely } from 'kysely'
import type { Settings } from '../config.js'
import { watchInventory } from '../control/keys/inventory.js'
import { operatorAuthenticator } from '../control/operators/authenticate.js'
import { issuerMistake } from '../control/operators/oidc-issuer.js'
import { controlPlane } from '../control/routes.js'
import { SigningKeyMaintenance } from '../control/signing-keys/maintenance.js'
import type { Database } from '../db/tables.js'
import { markPlane } from '../tracing/tracing.js'
import type { SharedDeps } from './shared-deps.js'
import { allowOrigins } from './cors.js'
import { untilRight } from './health.js'

export async function composeControl(shared: SharedDeps, config: Settings): Promise<void> {
  const { app, roots, hasher, metrics, tracing, checks, pools } = shared
  const { db } = pools.open('control', 'DATABASE_URL')
  const plane = controlPlane({ db, roots, config, hasher, onReceipt }, await operatorAuthenticator(config))
  checks.ofSettings.push(() => issuerMistake(config))
  checks.ofReadiness['issuer'] = untilRight(() => issuerMistake(config), app.log)
  const signingKeys = new SigningKeyMaintenance({ db, roots }, app.log)
  watchKeys(shared, db)
  app.addHook('onReady', () => signingKeys.start())
  app.addHook('onClose', () => signingKeys.stop())
  await app.register(async (scope) => {
    // Gateways are no browsers, so the runtime plane answers no preflight.
    if (config.CORS_ORIGINS) await allowOrigins(scope, config.CORS_ORIGINS)
    if (tracing) markPlane(scope, 'control')
    await scope.register(plane)
  })

  /** Called with each receipt that a caller waited for. */
  function onReceipt(seconds: number, complete: boolean): void {
    metrics.propagation.observe({ complete: String(complete) }, seconds)
    tracing?.did({ name: 'wait for replicas', seconds, attributes: { 'mecha_keys.complete': complete } })
  }
}

function watchKeys({ app, metrics }: SharedDeps, db: Kysely<Database>): void {
  const inventory = watchInventory(db, (error) => app.log.warn({ err: error }, 'keys could not be counted'))
  metrics.watch('mecha_keys_keys', 'Mecha keys by status, a minute old at most; estimated from a sample where there are many',
    () => Object.entries(inventory()?.keys ?? {}).map(([status, value]) => ({ labels: { status }, value })), ['status'])
  metrics.watch('mecha_keys_signing_key_age_seconds', 'Since the key that signs now began to, a minute old at most', () => inventory()?.signingKeyAge ?? undefined)
}
