/** Encryption of what is stored and has to be read again: AES-256-GCM (NIST SP 800-38D) under a root's key. */

import { createCipheriv, createDecipheriv, randomBytes } from 'node:crypto'
import type { Root } from './roots.js'

/** Bytes. A random nonce is safe for far more messages than there will be signing keys. */
const NONCE = 12
const TAG = 16

/**
 * @param purpose what is sealed and whose it is: it opens for the same purpose alone, so that nobody can move it to
 *   another row
 */
export function seal(secret: Uint8Array, purpose: string, { sealing }: Root): Buffer {
  const nonce = randomBytes(NONCE)
  const cipher = createCipheriv('aes-256-gcm', sealing, nonce, { authTagLength: TAG }).setAAD(Buffer.from(purpose))
  return Buffer.concat([nonce, cipher.update(secret), cipher.final(), cipher.getAuthTag()])
}

/**
 * What was sealed.
 *
 * @throws Error when it was sealed for another purpose or under another root, or has been changed since
 */
export function unseal(sealed: Buffer, purpose: string, { sealing }: Root): Buffer {
  if (sealed.length < NONCE + TAG) throw new Error('what is sealed has been cut')
  const decipher = createDecipheriv('aes-256-gcm', sealing, sealed.subarray(0, NONCE), { authTagLength: TAG })
  decipher.setAAD(Buffer.from(purpose)).setAuthTag(sealed.subarray(-TAG))
  return Buffer.concat([decipher.update(sealed.subarray(NONCE, -TAG)), decipher.final()])
}
