/** `root-secrets status`: which root secrets are still needed. */

import { rootSecretsStatus } from '../control/keys/root-secrets.js'
import { EXIT, print } from './shared.js'
import { withControlDeps, withDatabaseSettings } from './with-database.js'

export async function runRootSecretsStatus({ json }: { json?: true }): Promise<void> {
  await withDatabaseSettings((config) =>
    withControlDeps(config, async ({ db, roots }) => {
      const status = await rootSecretsStatus(db, roots)
      print(json, { root_secrets: status }, () =>
        status.map((root) => {
          const next = { newest: 'makes keys', older: root.droppable ? 'may be dropped' : 'still needed', missing: 'NEEDED AND NOT CONFIGURED' }
          return `${root.id}  ${root.role}  tags ${root.tagged} living keys, peppers ${root.peppered}, seals ${root.sealed} signing keys  ${next[root.role]}`
        }),
      )
      if (status.some(({ role }) => role === 'missing')) process.exitCode = EXIT.no
    }),
  )
}
