import t from 'tap'
import { Clock } from '../../../src/clock.js'
import { newId } from '../../../src/credentials/id.js'
import { deriveRoot } from '../../../src/credentials/roots.js'
import { makeToken } from '../../../src/credentials/token.js'
import { CredentialCache } from '../../../src/runtime/verify/credential-cache.js'
import { Fence } from '../../../src/runtime/verify/fence.js'
import type { CredentialRow, FoundCredential } from '../../../src/runtime/verify/store.js'

const token = makeToken('mecha', newId(), deriveRoot('the root of nothing but this test'))
const caller = { signal: new AbortController().signal }

/** A fence around rows and proofs that tests make up. `whileProving` runs between a read and what is decided by it. */
function fenceOf(whileProving: (fence: Fence, proofs: number) => void = () => {}) {
  const state = { reads: 0, proofs: 0, isFresh: true, isSecretRight: true }
  const row: CredentialRow = {
    id: token.id, kind: 'mecha', org_id: 'acme', mecha: 'sales^acmecorp', scopes: [], metadata: {}, hash: 'a hash', pepper_root: 'a root',
    enabled: true, created_at: new Date(), expires_at: null, revoked_at: null, version: 1,
  }
  const found: FoundCredential = { row, used: true, now: new Date() }
  const fence: Fence = new Fence({
    cache: new CredentialCache(10),
    loader: { read: async () => (state.reads++, found) },
    prover: {
      async prove() {
        whileProving(fence, ++state.proofs)
        return state.isSecretRight
      },
    },
    feed: { isFresh: () => state.isFresh },
    clock: new Clock(),
  })
  const find = () => fence.find(token.text, 0)
  const prove = () => fence.withProven(token, caller, (proven) => proven?.key ?? 'unknown')
  return { state, fence, find, prove }
}

t.test('a key that was proved is answered from memory, and only while the feed vouches for it', async (t) => {
  const { state, fence, find, prove } = fenceOf()
  t.equal(find(), undefined)
  const key = await prove()
  t.equal(find(), key)
  t.equal(fence.findById(token.id, 0), key)
  state.isFresh = false
  t.equal(find(), undefined)
  t.equal(fence.findById(token.id, 0), undefined)
  t.equal(fence.isUnvouched(token, 0), true, 'it is cached all the same')
})

t.test('a key that changes while its secret is proved is read again, and what was read before is not kept', async (t) => {
  const { state, fence, find, prove } = fenceOf((fence, proofs) => proofs === 1 && fence.invalidate([token.id]))
  await prove()
  t.equal(state.reads, 2)
  t.ok(find())
  fence.invalidate([newId()])
  t.ok(find(), 'a change of another key leaves it')
})

t.test('a key is refused as unavailable when each read is overtaken, and nothing of it is kept', async (t) => {
  const { state, find, prove } = fenceOf((fence) => fence.invalidateAll())
  await t.rejects(prove(), { code: 'database_unavailable' })
  t.equal(state.reads, 10)
  t.equal(find(), undefined)
})

t.test('a key that changes while a caller decides is decided anew, and its entry is invalidated', async (t) => {
  const { state, fence, find } = fenceOf()
  let decisions = 0
  await fence.withProven(token, caller, () => {
    if (++decisions === 1) fence.invalidate([token.id])
    return true
  })
  t.equal(decisions, 2)
  t.equal(state.reads, 2)
  t.equal(state.proofs, 1, 'the digest proves the secret against the same hash')
  t.ok(find())
})

t.test('a key that a caller could not use as it was read is read again, and what was kept of it first is invalidated', async (t) => {
  const { state, fence } = fenceOf()
  const kept: boolean[] = []
  const keys = new Set<{ readonly current: boolean }>()
  await fence.withProven(token, caller, (proven) => {
    keys.add(proven!.key)
    kept.splice(0, 2, ...[...keys].map(({ current }) => current))
    return keys.size === 1 ? undefined : true
  })
  t.equal(state.reads, 2)
  t.same(kept, [false, true])
})

t.test('an invalidated key is not answered from memory', async (t) => {
  const { fence, find, prove } = fenceOf()
  for (const invalidate of [() => fence.invalidate([token.id]), () => fence.invalidateAll()]) {
    await prove()
    t.ok(find())
    invalidate()
    t.equal(find(), undefined)
    t.same([...fence.current()], [])
  }
})

t.test('a wrong secret is remembered as refused until its key changes', async (t) => {
  const { state, fence, prove } = fenceOf()
  state.isSecretRight = false
  t.equal(await prove(), 'unknown')
  t.equal(fence.isRefused(token.text, 0), true)
  fence.invalidate([token.id])
  t.equal(fence.isRefused(token.text, 0), false)
})

t.test('callers share a read that is under way, but none that is overtaken', async (t) => {
  const { state, fence } = fenceOf()
  const both = [fence.withRow(token.id, () => true), fence.withRow(token.id, () => true)]
  await Promise.all(both)
  t.equal(state.reads, 1)
  const early = fence.withRow(token.id, () => true)
  fence.invalidate([token.id])
  await Promise.all([early, fence.withRow(token.id, () => true)])
  t.ok(state.reads >= 3, 'the read that was overtaken, and at least one after it')
})
