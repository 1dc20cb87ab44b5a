/** `list`: lists keys through the service, page by page. */

import { loadConfig, processEnvironment } from '../config.js'
import { call, requireCredential } from './client.js'
import { print } from './shared.js'

export async function runList(options: { mecha?: string; status?: string; json?: true }): Promise<void> {
  const config = loadConfig(processEnvironment())
  const credential = requireCredential(config, 'OPERATOR_TOKEN')
  const keys: { id: string; mecha: string; status: string; name: string | null }[] = []
  let cursor: string | null = ''
  while (cursor !== null) {
    const query: URLSearchParams = new URLSearchParams({ limit: '100', ...(cursor && { cursor }), ...(options.mecha && { mecha: options.mecha }), ...(options.status && { status: options.status }) })
    const page = (await call(config, { method: 'GET', path: `/v1/keys?${query.toString()}`, credential })) as { keys: typeof keys; next_cursor: string | null }
    keys.push(...page.keys)
    cursor = page.next_cursor
  }
  print(options.json, { keys }, () => keys.map(({ id, status, mecha, name }) => `${id}  ${status.padEnd(8)}  ${mecha}  ${name ?? ''}`))
}
