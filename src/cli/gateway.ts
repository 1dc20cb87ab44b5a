/** `gateway`: creates, lists and revokes gateway credentials, straight in the database. */

import { InvalidArgumentError } from 'commander'
import { createGateway } from '../control/gateways/create.js'
import { listKeys, type Cursor } from '../control/keys/list-store.js'
import { revoke } from '../control/keys/revoke.js'
import { parsePublicId, publicId } from '../credentials/id.js'
import { statusAt } from '../credentials/status.js'
import { print } from './shared.js'
import { commandLine, withControlDeps, withDatabaseSettings } from './with-database.js'

/** Gateways that are read at once. */
const PAGE = 1000

interface OfWhom {
  org?: string
  allOrganizations?: true
}

export async function runGatewayCreate(options: OfWhom & { name: string; json?: true }): Promise<void> {
  const caller = commandLine(orgOf(options))
  await withDatabaseSettings((config) =>
    withControlDeps(config, async (parts) => {
      const { key, plaintext } = await createGateway(parts, caller, options.name)
      const id = publicId('gateway', key.id)
      print(options.json, { id, name: options.name, org_id: key.org_id, plaintext_key: plaintext }, () => [plaintext])
    }),
  )
}

export async function runGatewayList(options: OfWhom & { json?: true }): Promise<void> {
  const { orgId } = commandLine(orgOf(options))
  await withDatabaseSettings((config) =>
    withControlDeps(config, async ({ db }) => {
      const gateways: { id: string; name: string | null; org_id: string | null; status: string }[] = []
      for (let after: Cursor | undefined, isMore = true; isMore; ) {
        const { keys, now } = await listKeys(db, { orgId, crews: undefined }, { kind: 'gateway', limit: PAGE, after })
        gateways.push(...keys.map((key) => ({ id: publicId('gateway', key.id), name: key.name, org_id: key.org_id, status: statusAt(key, now) })))
        const last = keys.at(-1)
        after = last && { by: 'created_at', at: last.created_at, id: last.id }
        isMore = keys.length === PAGE
      }
      print(options.json, { gateways }, () => gateways.map(({ id, status, name }) => `${id}  ${status}  ${name}`))
    }),
  )
}

export async function runGatewayRevoke(id: string, options: OfWhom & { reason?: string }): Promise<void> {
  const uuid = parsePublicId('gateway', id)
  if (!uuid) throw new InvalidArgumentError('<id> must be a gateway id: gw_…')
  const caller = commandLine(orgOf(options))
  await withDatabaseSettings((config) =>
    withControlDeps(config, async (parts) => {
      await revoke(parts, caller, 'gateway', uuid, options.reason)
      process.stdout.write(`revoked ${id}\n`)
    }),
  )
}

function orgOf({ org, allOrganizations }: OfWhom): string | null {
  if (org !== undefined && org !== '') return org
  if (allOrganizations) return null
  throw new InvalidArgumentError('say --org <org>, or --all-organizations')
}
