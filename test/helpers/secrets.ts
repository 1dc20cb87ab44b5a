/** What must be in no dump, log or answer, in whatever writing it could be there. */

import { createPrivateKey, hkdfSync } from 'node:crypto'
import type { Settings } from '../../src/config.js'

/** Where secrets are looked for. A text of Latin-1 stands for its bytes. */
export type Places = Readonly<Record<string, string>>

/** The secrets of a process that no other may have: root secrets, all that is derived from them, and what operators' tokens are signed with. */
export function processSecrets({ ROOT_SECRETS, BUILTIN_ISSUER_KEY }: Settings): Record<string, Buffer> {
  const secrets: Record<string, Buffer> = {}
  for (const [i, secret] of ROOT_SECRETS!.entries()) {
    secrets[`root secret ${i}`] = Buffer.from(secret)
    secrets[`bytes of root secret ${i}`] = Buffer.from(secret, 'base64url')
    for (const purpose of ['tag', 'pepper', 'hash-input', 'seal']) secrets[`${purpose} key of root secret ${i}`] = Buffer.from(hkdfSync('sha256', secret, '', `mecha-keys/v1/${purpose}`, 32))
  }
  if (BUILTIN_ISSUER_KEY) secrets['issuer key'] = Buffer.from(createPrivateKey(BUILTIN_ISSUER_KEY).export({ format: 'jwk' }).d!, 'base64url')
  return secrets
}

/** Which secrets stand where: as their bytes, or in hexadecimal, base64 or base64url, also within more that is written so. */
export function found(secrets: Readonly<Record<string, Buffer>>, places: Places): string[] {
  return Object.entries(places).flatMap(([place, text]) => {
    const lower = text.toLowerCase()
    return Object.entries(secrets).flatMap(([name, secret]) => [
      ...(text.includes(secret.toString('latin1')) ? [`${name} in ${place}`] : []),
      ...(lower.includes(secret.toString('hex')) ? [`${name} in ${place}, in hexadecimal`] : []),
      ...(base64Of(secret).some((written) => text.includes(written)) ? [`${name} in ${place}, in base64`] : []),
    ])
  })
}

/** What is the same in every base64 text that holds some bytes: three bytes are four characters, so it depends on how many stand before. */
function base64Of(secret: Buffer): string[] {
  return [0, 1, 2].flatMap((before) => {
    const whole = Buffer.concat([Buffer.alloc(before), secret])
    const written = whole.toString('base64').slice(Math.ceil((before * 8) / 6), Math.floor((whole.length * 8) / 6))
    return [written, written.replaceAll('+', '-').replaceAll('/', '_')]
  })
}
