/** `inspect`: whether a text is a well-formed key, and of which id. It needs neither the service nor a database. */

import { loadConfig, processEnvironment } from '../config.js'
import { publicId } from '../credentials/id.js'
import { parseToken } from '../credentials/token.js'
import { EXIT, print, readKey } from './shared.js'

export async function runInspect({ json }: { json?: true }): Promise<void> {
  const token = parseToken(await readKey(loadConfig(processEnvironment())))
  const answer = token
    ? { well_formed: true, prefix: token.prefix, key_id: publicId('mecha', token.id), gateway_id: publicId('gateway', token.id) }
    : { well_formed: false }
  print(json, answer, () => [token ? `a well-formed key with the prefix ${token.prefix}: ${publicId('mecha', token.id)}` : 'not a well-formed key'])
  if (!token) process.exitCode = EXIT.no
}
