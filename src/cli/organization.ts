/** `organization erase`: in two steps, as the owner of the tables. */

import { InvalidArgumentError } from 'commander'
import { ORGANIZATION, ORGANIZATION_RULE } from '../config.js'
import { eraseOrganization, planErasure, type Plan, type Unfinished } from '../control/organizations/erase.js'
import { asOwner, commandLine } from './with-database.js'
import { EXIT, print } from './shared.js'

/** It counts every event of an organization. */
const TIMEOUT_MS = 60_000

const WHY: Readonly<Record<Unfinished, string>> = {
  not_confirmed: 'nothing was changed: what there is of it is not what was confirmed. Look at it once more, without --confirm',
  not_propagated: 'its credentials are revoked and nothing is removed yet: not every replica has said that it refuses them. Run this again',
}

export async function runOrganizationErase(orgId: string, { confirm, json }: { confirm?: string; json?: true }): Promise<void> {
  if (!ORGANIZATION.test(orgId)) throw new InvalidArgumentError(`<org> ${ORGANIZATION_RULE}`)
  await asOwner(async (db, { REVOCATION_MAX_STALENESS }) => {
    if (confirm === undefined) {
      const plan = await planErasure(db, orgId)
      return print(json, plan, () => describe(orgId, plan))
    }
    const onStep = (message: string) => void process.stderr.write(`mecha-keys: ${message}\n`)
    const erased = await eraseOrganization(db, orgId, { confirmation: confirm, author: commandLine(null), boundMs: REVOCATION_MAX_STALENESS * 1000, onStep })
    if (typeof erased === 'string') {
      process.stderr.write(`mecha-keys: ${WHY[erased]}\n`)
      process.exitCode = EXIT.no
      return
    }
    print(json, erased, () => [`erased ${orgId}`, `what remains in the database: the SHA-256 of its id (${erased.organization_sha256}) with these counts, and ids of its keys in the change feed and the status list, for about an hour`, ...ELSEWHERE])
  }, TIMEOUT_MS)
}

const ELSEWHERE = ['what remains elsewhere, to be ended there: back-ups, files that mecha-keys events has written, logs, and the tokens of its operators, which its issuer has to stop']

function describe(orgId: string, { counts, confirmation, isUnderWay }: Plan): string[] {
  const { mechas, keys, keys_not_revoked, gateways, gateways_not_revoked, crews, events } = counts
  if (!isUnderWay && Object.values(counts).every((count) => count === 0)) return [`the database has nothing of ${orgId}`]
  return [
    `${orgId} ${isUnderWay ? 'is being erased, and still has' : 'has'} in this database:`,
    `  ${mechas} Mechas`,
    `  ${keys} keys, ${keys_not_revoked} of them not revoked, with the times of their use`,
    `  ${gateways} gateway credentials, ${gateways_not_revoked} of them not revoked`,
    `  ${crews} reserved crews`,
    `  ${events} events`,
    'All of it would be revoked and then removed, for good. Its handles and crews are free for others from then on.',
    ...ELSEWHERE,
    `to do that: mecha-keys organization erase ${orgId} --confirm ${confirmation}`,
  ]
}
