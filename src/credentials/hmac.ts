/**
 * HMAC-SHA-256 (RFC 2104), by its definition over Node's one-shot hash. `createHmac` makes a stream for each message:
 * in a service that is flooded with forged keys that was 9 of the 24 microseconds that a tag cost
 * (`docs/performance.md`). The tests hold the two against each other.
 */

import { hash } from 'node:crypto'

/** Bytes: what SHA-256 works on at a time, and what it gives. */
const BLOCK = 64
const SIZE = 32

/** The MAC of a text of Latin-1 as 32 characters, a byte each. */
export type Mac = (text: string) => string

/**
 * @param key of 64 bytes at most
 * @param longest most characters that a text will have
 */
export function createMac(key: Uint8Array, longest: number): Mac {
  if (key.length > BLOCK) throw new RangeError(`a key of HMAC-SHA-256 has ${BLOCK} bytes at most here`)
  const inner = paddedBlock(key, 0x36, longest)
  const outer = paddedBlock(key, 0x5c, SIZE)
  return (text) => {
    if (text.length > longest) throw new RangeError(`a text has ${longest} characters at most here`)
    inner.write(text, BLOCK, 'latin1')
    outer.write(hash('sha256', inner.subarray(0, BLOCK + text.length), 'binary'), BLOCK, 'latin1')
    // The text is a secret, and this block lives as long as the process.
    inner.fill(0, BLOCK, BLOCK + text.length)
    return hash('sha256', outer, 'binary')
  }
}

/** The key under a pad, and room for what follows it. */
function paddedBlock(key: Uint8Array, pad: number, room: number): Buffer {
  const block = Buffer.alloc(BLOCK + room, 0)
  for (let i = 0; i < BLOCK; i++) block[i] = (key[i] ?? 0) ^ pad
  return block
}
